# SPDX-License-Identifier: Apache-2.0
"""Runs in the guest, by the project's own Python: says what the kernel has, then runs the tests and the demos.

Each step leaves a file in the shared directory as soon as it is done, so that a kernel that panics in the third has
told about two:

    doctor.json    what `ebpftrace doctor` says
    programs.json  which functions of each program this kernel took, and why not the others
    junit.xml      the tests
    demos.json     exit codes of the demos

Exit code: 0 also when tests fail; the files say so. Anything else: a step could not be run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

DISK, MOUNTED = "/dev/vda", Path("/mnt/vm-disk")
ROOT = Path(__file__).resolve().parents[3]
TAIL_LINES = 12
DEMO_TRIES = 2  # a quota may not be used up where somebody else has the CPU
PATIENCE = 20


def doctor(directory):
    """Ask the command, as a user would."""
    done = _ebpftrace("doctor", "--json")
    (directory / "doctor.json").write_text(done.stdout if done.returncode in (0, 1) else _failed(done))


def _ebpftrace(*words, timeout_s=600, **options):
    command = [sys.executable, "-P", "-m", "ebpftrace.cli.main", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False, **options
    )


def _failed(done):
    return json.dumps({"error": tail(done.stdout + done.stderr)})


def tail(text):
    """The last lines."""
    return "\n".join(text.rstrip().splitlines()[-TAIL_LINES:])


def programs(directory):
    """Load and attach each program, with its extras and without, and write down what came of it."""
    from ebpftrace import programs as shipped
    from ebpftrace.kernel.btf import Btf

    kernel = Btf.kernel()
    found = {
        name: [_load(shipped.find(name), kernel, extras=extras) for extras in (True, False)] for name in shipped.names()
    }
    facts = {name: {"with extras": one, "without": other} for name, (one, other) in found.items()}
    (directory / "programs.json").write_text(json.dumps(facts, indent=1))


def _load(program, kernel, *, extras):
    """What a program is here: hooks by section: "" for one that is attached, else why it is not."""
    from ebpftrace.errors import EbpftraceError
    from ebpftrace.kernel.object import BpfObject
    from ebpftrace.programs.choose import choose_functions, kernel_knobs, lacks, why_not
    from ebpftrace.programs.knobs import set_numbers

    with BpfObject(program.name, program.object_bytes()) as obj:
        functions = obj.programs()
        lacking = lacks(obj)
        hooks = {each.section: lacking or why_not(each, kernel, extras=extras) for each in functions}
        optional = [each.section for each in functions if each.optional]
        choose_functions(obj, kernel, extras=extras)
        set_numbers(obj, kernel_knobs(kernel), known_only=True)
        try:
            obj.load()
        except EbpftraceError as error:
            return {"error": str(error), "log": tail("\n".join(error.__notes__)), "hooks": hooks, "extras": optional}
        for function in obj.attachable():
            try:
                obj.attach_one(function)
            except EbpftraceError as error:
                hooks[function.section] = str(error)
    return {"error": "", "log": "", "hooks": hooks, "extras": optional}


def tests(directory, arguments):
    """Run pytest on them, in one process, on a disk: what is written to the guest's root stays in memory."""
    subprocess.run(["modprobe", "loop"], check=False)  # nobody else is there to make its device nodes
    subprocess.run(["mkfs.ext4", "-q", DISK], check=True)
    MOUNTED.mkdir()
    subprocess.run(["mount", DISK, MOUNTED], check=True)
    environment = {
        **os.environ,
        "EBPFTRACE_KERNEL_TESTS": "1",
        "EBPFTRACE_BCC_TESTS": "1",
        "EBPFTRACE_TEST_FORK": "1",
        "EBPFTRACE_TEST_PATIENCE": str(PATIENCE),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-p",
        "pytest_timeout",
        "-p",
        "no:cacheprovider",
        "-o",
        "timeout=400",
    ]
    command += ["-v", "--tb=short", "--durations=10", f"--junitxml={directory / 'junit.xml'}"]
    command += [f"--rootdir={ROOT}", f"--config-file={ROOT}/pyproject.toml", f"--basetemp={MOUNTED}/tmp"]
    command += [str(ROOT / argument) for argument in arguments]
    code = subprocess.run(command, cwd=MOUNTED, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
    if code not in (0, 1):
        raise SystemExit(f"pytest ended with {code}: {' '.join(arguments)}")


def refused(directory, name):
    """Why a program can have none of its hooks here, as the step before has found out; "" when it has some."""
    facts = json.loads((directory / "programs.json").read_text()).get(name, {}).get("with extras")
    if not facts:
        return ""
    reasons = [reason for hook, reason in facts["hooks"].items() if hook not in facts["extras"]]
    return "; ".join(dict.fromkeys(reasons)) if all(reasons) else ""


def demos(directory, names):
    """Run each to its end, as a user would."""
    found = {}
    for name in names:
        reason = refused(directory, name)
        if reason:
            found[name] = {"code": 0, "tries": 0, "tail": "", "skipped": reason}
            continue
        for attempt in range(1, DEMO_TRIES + 1):
            done = _ebpftrace("demo", name, "--output", f"/tmp/{name}.jsonl", cwd="/")
            found[name] = {"code": done.returncode, "tries": attempt, "tail": tail(done.stdout + done.stderr)}
            if not done.returncode:
                break
        print(f"demo {name}: {found[name]['code']}", flush=True)
    (directory / "demos.json").write_text(json.dumps(found, indent=1))


def main():
    """Do what the command line says, in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tests", nargs="*", default=[])
    parser.add_argument("--demos", nargs="*", default=[])
    args = parser.parse_args()
    os.chdir(ROOT)
    for name, step in {
        "doctor": lambda: doctor(args.directory),
        "programs": lambda: programs(args.directory),
        "tests": lambda: tests(args.directory, args.tests) if args.tests else None,
        "demos": lambda: demos(args.directory, args.demos),
    }.items():
        print(f"vm: step {name}", flush=True)
        step()
    print("vm: done", flush=True)


if __name__ == "__main__":
    main()
