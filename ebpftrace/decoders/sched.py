# SPDX-License-Identifier: Apache-2.0
"""What the scheduler says in numbers."""

from __future__ import annotations

import functools
import importlib.resources
import json

from ebpftrace.decoders.values import number

# include/linux/sched.h; fs/proc/array.c prints the same words
_STATES = (
    (0x0001, "interruptible"),
    (0x0002, "uninterruptible"),
    (0x0004, "stopped"),
    (0x0008, "traced"),
    (0x0010, "dead"),
    (0x0020, "zombie"),
    (0x0040, "parked"),
)


def task_state(value: int) -> str:
    """The state in which a task left its CPU."""
    if not value & 0x7F:
        return "running"
    return "|".join(word for bit, word in _STATES if value & bit)


@functools.cache
def syscall_names() -> dict[int, str]:
    """System calls of the machine this was built for, by number."""
    data = importlib.resources.files("ebpftrace.decoders").joinpath("syscalls.json").read_text()
    return {number: name for name, number in json.loads(data).items()}


def syscall(value: int | str) -> str:
    """A system call's name."""
    code = number(value)
    return (syscall_names().get(code) if code is not None else None) or f"unknown_syscall:{value}"
