# SPDX-License-Identifier: Apache-2.0
"""Processes: whose they are, their arguments and how they ended (wait(2))."""

from __future__ import annotations

import grp
import os
import pwd
import signal
from pathlib import Path

from ebpftrace.decoders.lookups import Cache

_PROC = Path("/proc")


def exec_name(value: bytes) -> str:
    """What to call the run of a binary, from its path."""
    return "exec " + value.partition(b"\0")[0].rpartition(b"/")[2].decode("utf-8", "replace")


def argv(value: bytes) -> tuple[str, ...] | None:
    """Arguments, each ended by a NUL; the last one may be cut, or be missing its NUL."""
    arguments = value.rstrip(b"\0").split(b"\0")
    return tuple(a.decode("utf-8", "replace") for a in arguments) if arguments != [b""] else None


def exit_code(status: int) -> int | None:
    """The exit code of a wait status; nothing for a process that a signal ended."""
    status &= 0xFFFF  # all that a wait status has, and more is too much for os.*
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def exit_error(status: int) -> str | None:
    """What went wrong, in words; nothing for exit code 0."""
    status &= 0xFFFF
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:  # a real-time signal
            return f"killed by signal {number}"
    code = os.WEXITSTATUS(status)
    return f"exit code {code}" if code else None


def _user(number: int) -> str | None:
    try:
        return pwd.getpwuid(number).pw_name
    except (KeyError, OverflowError, OSError):
        return None


def _group(number: int) -> str | None:
    try:
        return grp.getgrgid(number).gr_name
    except (KeyError, OverflowError, OSError):
        return None


def _command(number: int) -> str | None:
    try:
        return (_PROC / str(number) / "comm").read_bytes().rstrip(b"\n").decode("utf-8", "replace") or None
    except OSError:
        return None


# a directory service may take long to say that it does not know somebody
_users: Cache[int, str] = Cache(_user, found_s=60, missing_s=10)
_groups: Cache[int, str] = Cache(_group, found_s=60, missing_s=10)
_commands: Cache[int, str] = Cache(_command, found_s=1, missing_s=1)


def uid(value: int) -> str:
    """A user's name."""
    return _users.get(value) or f"unknown:{value}"


def gid(value: int) -> str:
    """A group's name."""
    return _groups.get(value) or f"unknown:{value}"


def pid(value: int) -> str:
    """The command of a process or thread that still runs, or ran when it was last looked up."""
    if not value:
        return "swapper"  # the idle task, which has no directory in /proc
    return _commands.get(value) or f"unknown:{value}"
