# SPDX-License-Identifier: Apache-2.0
"""The few calls into libc that Python has no name for."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

PR_SET_NO_NEW_PRIVS = 38

libc = ctypes.CDLL(None, use_errno=True)
# A wrong width would pass garbage in the upper half of a register.
libc.syscall.restype = ctypes.c_long
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def checked(result: int, what: str) -> int:
    """Return `result`, or raise OSError with errno and what was being done when it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def prctl(option: int, *arguments: int) -> int:
    """Ask something of the kernel for the calling thread.

    Raises:
        OSError: the kernel refused.
    """
    padded = [*arguments, 0, 0, 0, 0][:4]
    return checked(libc.prctl(option, *padded), f"prctl({option})")


def set_no_new_privileges() -> None:
    """Let no exec from here on gain privileges; cannot be undone."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def other_threads() -> int:
    """Return how many threads this process has beside the calling one, those that Python did not start included."""
    return sum(1 for _ in Path("/proc/self/task").iterdir()) - 1
