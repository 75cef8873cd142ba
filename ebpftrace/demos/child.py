# SPDX-License-Identifier: Apache-2.0
"""A child process that talks in JSON lines, and is gone when the demo is."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, Self

from ebpftrace.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

_STOP_S = 10.0
_TERMINATE_S = 2.0
_LAST_LINES = 25


class Child:
    """A Python module that runs in a process of its own; a context manager, which ends it.

    It gets a session of its own, so that Ctrl-C reaches only the demo, which then ends its children in order. Its
    environment is without OTEL_* and EBPFTRACE_* settings, which are meant for the user's own services.

    Args:
        name: what it is, for messages.
        module: the module to run.
        arguments: its arguments.
    """

    def __init__(self, name: str, module: str, arguments: Sequence[str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._unread = b""
        self._process = subprocess.Popen(  # noqa: S603  (our own module)
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            env=environment(),
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def message(self, timeout_s: float) -> dict[str, Any]:
        """Wait for its next line.

        Raises:
            CommandError: it ended, or said nothing in time; with what it wrote to stderr.
        """
        assert self._process.stdout is not None  # noqa: S101  (a pipe was asked for)
        fd = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self._failed(f"said nothing for {timeout_s:.0f} s")
            read = os.read(fd, 65536)
            if not read:
                code = self._process.wait()
                how = f"with exit code {code}" if code >= 0 else f"by signal {signal.Signals(-code).name}"
                raise self._failed(f"ended {how}")
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            raise self._failed(f"said {line!r}, which is not JSON") from None
        return message

    def _failed(self, what: str) -> CommandError:
        error = CommandError(f"the demo's {self.name} {what}")
        said = self.errors()
        error.add_note(f"its last words on stderr:\n{said}" if said else "it wrote nothing to stderr")
        return error

    def errors(self) -> str:
        """The end of what it wrote to stderr so far."""
        size = os.fstat(self._errors.fileno()).st_size
        # pread, because the child writes at the offset that both share
        tail = os.pread(self._errors.fileno(), 16384, max(0, size - 16384)).decode(errors="replace")
        return "\n".join(tail.rstrip().splitlines()[-_LAST_LINES:])

    def end_input(self) -> None:
        """Close its standard input, which asks it to finish."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def close(self) -> None:
        """Ask it to finish, insist after some seconds, and wait until it is gone; idempotent."""
        self.end_input()
        try:
            self._process.wait(0 if self._process.poll() is not None else _STOP_S)
        except subprocess.TimeoutExpired:
            self._insist()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _insist(self) -> None:
        os.killpg(self.pid, signal.SIGTERM)  # it has not been waited for: the id is still its own
        try:
            self._process.wait(_TERMINATE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and self._process.poll() is None:
            self._insist()  # nobody waits for the spans of a run that failed
        self.close()


def environment() -> dict[str, str]:
    """Return this process's environment without settings that are meant for the user's own services."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "EBPFTRACE_DISABLED" or not name.startswith(("OTEL_", "EBPFTRACE_"))
    }
