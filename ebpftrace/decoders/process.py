# SPDX-License-Identifier: Apache-2.0
"""Processes: their arguments and how they ended (wait(2))."""

from __future__ import annotations

import os
import signal


def exec_name(value: bytes) -> str:
    """What to call the run of a binary, from its path."""
    return "exec " + value.partition(b"\0")[0].rpartition(b"/")[2].decode("utf-8", "replace")


def argv(value: bytes) -> tuple[str, ...] | None:
    """Arguments, each ended by a NUL; the last one may be cut, or be missing its NUL."""
    arguments = value.rstrip(b"\0").split(b"\0")
    return tuple(a.decode("utf-8", "replace") for a in arguments) if arguments != [b""] else None


def exit_code(status: int) -> int | None:
    """The exit code of a wait status; nothing for a process that a signal ended."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def exit_error(status: int) -> str | None:
    """What went wrong, in words; nothing for exit code 0."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:  # a real-time signal
            return f"killed by signal {number}"
    code = os.WEXITSTATUS(status)
    return f"exit code {code}" if code else None
