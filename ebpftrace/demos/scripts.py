# SPDX-License-Identifier: Apache-2.0
"""The short demos: programs such as a user would write, each run in a process of its own.

They are in `demos/` of the source tree; the build puts them beside this module.
"""

from __future__ import annotations

import importlib.resources
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.demos.child import environment
from ebpftrace.demos.http_service.run import NotTracedError, make_scratch
from ebpftrace.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ebpftrace.viewer.trace import Span

_NOT_HERE = 3  # exit code of a script where nothing can be traced
_LIMIT_S = 60.0
_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Script:
    """One demo.

    Attributes:
        name: what `ebpftrace demo` calls it.
        about: what it does.
        see: what to look at in its trace.
        traced: names of spans that have kernel spans below them.
        untraced: names of spans that have none.
        unless: when the traced ones may have none after all.
    """

    name: str
    about: str
    see: str
    traced: tuple[str, ...]
    untraced: tuple[str, ...]
    unless: str = ""

    def path(self) -> Path:
        """Return where its program is.

        Raises:
            CommandError: the package was put on the path without being built.
        """
        path = importlib.resources.files("ebpftrace.demos").joinpath(f"{self.name.replace('-', '_')}/demo.py")
        if not path.is_file():
            raise CommandError(f"the demo's program {path} is missing; build the package: pip install .")
        return Path(str(path))


SCRIPTS = {
    script.name: script
    for script in (
        Script(
            "sock",
            "a connection to a server of its own: dial, write, read, close; then once more, untraced",
            "each phase of the traced connection owns what the kernel did to the socket in its time; the untraced one "
            "has the same phases and nothing of the kernel below them.",
            ("traced connection",),
            ("untraced connection",),
        ),
        Script(
            "sched",
            "a traced and an untraced sleep of 123 ms",
            "below the traced sleep is how the scheduler saw it: switched out, asleep, woken by a timer. Below the "
            "untraced one is nothing.",
            ("traced sleep",),
            ("untraced sleep",),
        ),
        Script(
            "cfs-throttling",
            "a traced and an untraced second of work with 80 % of a CPU",
            "below the traced loop is a span for each time that its quota was used up, until it ran again. The "
            "untraced one lost as much time, and has no span that says when.",
            ("traced busy loop",),
            ("untraced busy loop",),
            "while other programs leave it less than 80 % of a CPU, its quota is never used up: try again when the "
            "machine is idle",
        ),
    )
}


def run(script: Script, output: Path) -> None:
    """Run a demo; its trace is in `output` when this returns, and an older file there is kept when it does not.

    Args:
        script: which.
        output: OTLP JSON lines; its directory must exist.

    Raises:
        NotTracedError: this machine, or this user, cannot trace.
        CommandError: the demo failed.
    """
    path = script.path()
    scratch = make_scratch(output.parent)
    try:
        trace = scratch / "trace.jsonl"
        code, said = _finish([sys.executable, "-P", str(path), "--output", str(trace)])
        if code == _NOT_HERE:
            raise NotTracedError(said.splitlines()[0].removeprefix("kernel tracing is off: ") if said else "no reason")
        if code or not trace.exists():
            error = CommandError(f"the demo {script.name} ended with exit code {code}" if code else "it wrote no spans")
            error.add_note(said or "it wrote nothing to stderr")
            raise error
        trace.replace(output)
    finally:
        shutil.rmtree(scratch)


def _finish(command: Sequence[str]) -> tuple[int, str]:
    """Run to the end; the exit code and what was written to stderr. Whatever ends us ends it in order, too."""
    process = subprocess.Popen(  # noqa: S603  (our own program)
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is for us to pass on
        env=environment(),
    )
    try:
        _, said = process.communicate(timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        _interrupt(process)
        raise CommandError(f"the demo did not end within {_LIMIT_S:.0f} s") from None
    except BaseException:
        _interrupt(process)
        raise
    return process.returncode, said.strip()


def _interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def kernel_spans_below(spans: Iterable[Span], name: str) -> int | None:
    """Count the kernel's spans below the spans of a name, at any depth; None when there is no such span."""
    spans = list(spans)
    above = {span.span_id: span for span in spans}
    tops = {span.span_id for span in spans if span.name == name and not span.kernel}
    if not tops:
        return None

    def is_below(span: Span) -> bool:
        seen: set[str] = set()
        parent = above.get(span.parent_id)
        while parent is not None and parent.span_id not in seen:
            if parent.span_id in tops:
                return True
            seen.add(parent.span_id)
            parent = above.get(parent.parent_id)
        return False

    return sum(1 for span in spans if span.kernel and is_below(span))


def broken_promises(script: Script, spans: Sequence[Span]) -> list[str]:
    """Say what of a demo's promise, "one half is traced, the other not", its trace does not keep."""
    broken = []
    for name in (*script.traced, *script.untraced):
        count = kernel_spans_below(spans, name)
        if count is None:
            broken.append(f"there is no span {name!r}")
        elif name in script.traced and not count:
            broken.append(f"{name!r} has no kernel spans below it" + (f"; {script.unless}" if script.unless else ""))
        elif name in script.untraced and count:
            broken.append(f"{name!r} has {count:,} kernel spans below it")
    return broken
