# SPDX-License-Identifier: Apache-2.0
"""Runs the shop under its quota with its customers in front of it, and leaves nothing behind."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebpftrace.demos.cgroup import CpuQuota
from ebpftrace.demos.child import Child
from ebpftrace.errors import CommandError, UnsupportedError

CUSTOMERS = 3
SECONDS = 5.0
QUOTA_PERCENT = 25

_PACKAGES = {
    "flask": "flask",
    "waitress": "waitress",
    "opentelemetry.instrumentation.flask": "opentelemetry-instrumentation-flask",
}
_MODULE = "ebpftrace.demos.http_service"
_START_S = 30.0
_WRITE_S = 30.0

Say = Callable[[str, str], None]
"""Tells the user one fact: a heading and the words."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has to say besides its trace.

    Attributes:
        stats: `ebpftrace.stats()` of the service at its end.
        failed: spans that could not be written.
    """

    stats: dict[str, Any]
    failed: int


class NotTracedError(UnsupportedError):
    """The service runs, but kernel tracing is off; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__("kernel tracing", reason)


def check_installed() -> None:
    """See that the demo's own dependencies are there.

    Raises:
        CommandError: some are not.
    """
    missing = [package for module, package in _PACKAGES.items() if not _is_installed(module)]
    if missing:
        raise CommandError(
            f"the demo needs {', '.join(missing)}: {sys.executable} -m pip install 'ebpftrace[demo]'", exit_code=2
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def run(output: Path, say: Say, *, seconds: float = SECONDS) -> Outcome:
    """Run the demo; its trace is in `output` when this returns, and an older file there is kept when it does not.

    Args:
        output: OTLP JSON lines; its directory must exist.
        say: is told what happens.
        seconds: how long the customers order.

    Raises:
        NotTracedError: this machine, or this user, cannot trace.
        CommandError: something else went wrong.
    """
    with ExitStack() as stack:
        # next to the output: /tmp is often in memory, where the order log's fsync() would wait for no disk
        scratch = make_scratch(output.parent)
        stack.callback(shutil.rmtree, scratch)
        trace = scratch / "trace.jsonl"
        arguments = ["--output", str(trace), "--orders", str(scratch / "orders.log")]
        service = stack.enter_context(Child("service", f"{_MODULE}.service", arguments))
        ready = service.message(_START_S)
        if not ready["active"]:
            raise NotTracedError(ready["reason"])
        say("service", f"Flask on waitress, process {service.pid}, with `ebpftrace.start()` in it")
        _order(service, ready["port"], say, seconds)
        service.end_input()
        end = service.message(_WRITE_S)
        if not trace.exists():
            raise CommandError("the demo's service wrote no spans")
        trace.replace(output)
        return Outcome(end["stats"], end["failed"])


def make_scratch(directory: Path) -> Path:
    """Return a new hidden directory in `directory`, for the caller to remove.

    Raises:
        CommandError: it cannot be made.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=".ebpftrace-demo-", dir=directory))
    except OSError as error:
        raise CommandError(
            f"cannot write to {directory}: {error.strerror}; give a file in another directory with --output"
        ) from error


def _order(service: Child, port: int, say: Say, seconds: float) -> None:
    with ExitStack() as stack:
        quota = _limit(stack, service, say)
        arguments = ["--port", str(port), "--seconds", str(seconds), "--customers", str(CUSTOMERS)]
        say("load", f"{CUSTOMERS} customers order for {seconds:g} s ...")
        client = stack.enter_context(Child("client", f"{_MODULE}.client", arguments))
        done = client.message(seconds + _START_S + _WRITE_S)
        if not done["orders"]:
            said = service.errors()
            error = CommandError(f"no order of the demo succeeded; the first failed with {done['first_failure']}")
            if said:
                error.add_note(f"the service's last words on stderr:\n{said}")
            raise error
        failures = f", {done['failures']} failed ({done['first_failure']})" if done["failures"] else ""
        took = f"half of them within {done['median_ms']:.0f} ms, the slowest took {done['slowest_ms']:.0f} ms"
        say("", f"{done['orders']} orders{failures}: {took}")
        if quota is not None:
            say("", f"meanwhile the quota kept CPUs from the service for {quota.throttled_ns() / 1e9:.1f} s (cpu.stat)")


def _limit(stack: ExitStack, service: Child, say: Say) -> CpuQuota | None:
    # Only now: a service that starts under the quota would take seconds to import Flask.
    try:
        quota = stack.enter_context(CpuQuota(QUOTA_PERCENT))
        quota.add(service.pid)
    except UnsupportedError as error:
        say("CPU quota", f"none, so nothing will be throttled: {error}")
        return None
    say("CPU quota", f"{quota.percent} % of one CPU, as a container limit would set it (cgroup v{quota.version})")
    return quota
