# SPDX-License-Identifier: Apache-2.0
"""Runs scenarios in processes of their own, in one mode, and brings their verdicts back.

python runner.py 3 "asyncio/gather" "asyncio/streams"     (3: a descriptor for the report, a JSON line a scenario)
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

HERE = Path(__file__).parent
MODE_VARIABLE = "EBPFTRACE_CONTEXT_HOOKS"
TIMEOUT_S = 40


def key(scenario):
    """Its name on the command line and in results."""
    return f"{scenario.family}/{scenario.name}"


def batches(scenarios):
    """Those that share a process: of one family, unless it wants one of its own."""
    shared = {}
    for each in scenarios:
        if each.alone:
            yield [each]
        else:
            shared.setdefault(each.family, []).append(each)
    yield from shared.values()


def run(scenarios, *, mode, program, python=sys.executable):
    """Run scenarios in one process; yields (scenario, result).

    Args:
        scenarios: of one batch.
        mode: of the hooks, as the setting has it.
        program: the oracle's compiled program.
        python: the interpreter.

    A result has "status" ("run", "not run", "failed"), a "reason", and the verdict's counts.
    """
    with tempfile.TemporaryFile("w+") as report:
        command = [python, str(HERE / "runner.py"), str(report.fileno()), *map(key, scenarios)]
        environment = {**os.environ, MODE_VARIABLE: mode, "CONTEXT_MATRIX_ORACLE": str(program)}
        process = subprocess.Popen(
            command, env=environment, pass_fds=[report.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S + 5 * len(scenarios))
            ended = f"its process ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            ended = "its process did not end in time"
            output = ""
        finally:
            with contextlib.suppress(ProcessLookupError):  # its servers and children too, when it went wrong
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        report.seek(0)
        results = {line["scenario"]: line for line in map(json.loads, report)}
    for each in scenarios:
        lost = {"status": "failed", "reason": ended, "output": output[-2000:]}
        yield each, results.get(key(each), lost)


def _missing(scenario):
    """Why it cannot run in this Python; "" when it can."""
    if sys.version_info < scenario.since:
        return f"from Python {'.'.join(map(str, scenario.since))} on"
    for name in scenario.needs:
        try:
            importlib.import_module(name)
        except ImportError as error:
            return str(error) if name in str(error) else f"{name}: {error}"
        except Exception as error:  # noqa: BLE001  (a framework that does not work here)
            return f"{name} cannot be imported: {type(error).__name__}: {error}"
    return ""


def _run_one(scenario):
    import oracle

    reason = "" if scenario.alone else _missing(scenario)
    if reason:
        return {"status": "not run", "reason": reason}
    try:
        if not scenario.alone and oracle._oracle is None:
            oracle.start()
        scenario.function()
    except oracle.NotRun as error:
        return {"status": "not run", "reason": str(error)}
    except ImportError as error:
        return {"status": "not run", "reason": str(error)}
    except Exception as error:  # noqa: BLE001  (it is reported, and the others go on)
        if oracle._oracle is not None:
            oracle.oracle().verdict()
        return {
            "status": "failed",
            "reason": f"{type(error).__name__}: {error}",
            "output": traceback.format_exc()[-2000:],
        }
    return {"status": "run", "hooks": _hooks(), **oracle.oracle().verdict()}


def _hooks():
    """How each hook stands in this process: "on", or why it is not."""
    import ebpftrace

    return ebpftrace.stats()["context_hooks"]["hooks"]


def main(report_fd, *keys):
    """Be the process that `run` started."""
    import scenarios

    found = {key(each): each for each in scenarios.load((*scenarios.MODULES, scenarios.SABOTAGE))}
    with open(report_fd, "w", closefd=False) as report:
        for each in keys:
            result = _run_one(found[each])
            print(json.dumps({"scenario": each, **result}), file=report, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
