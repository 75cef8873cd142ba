# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.decoders.sched import syscall, syscall_names, task_state


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "running"),
        (1, "interruptible"),
        (2, "uninterruptible"),
        (0x100, "running"),  # TASK_REPORT and above are for the scheduler itself
        (0x402, "uninterruptible"),
        (0x42, "uninterruptible|parked"),
        (0x10, "dead"),
    ],
)
def test_task_state(value, text):
    """A state is the words of its bits that fs/proc shows."""
    assert text == task_state(value)


@given(st.integers(0, (1 << 32) - 1))
def test_any_task_state(value):
    """Every number is some state."""
    assert task_state(value)


def test_syscall():
    """System calls have this machine's numbers."""
    libc = ctypes.CDLL(None)
    getppid = next(number for number, name in syscall_names().items() if name == "getppid")

    import os

    assert os.getppid() == libc.syscall(getppid)
    assert "getppid" == syscall(getppid)


def test_unknown_syscall():
    """A system call that is newer than this release is shown by its number."""
    assert "unknown_syscall:9999" == syscall(9999)


@pytest.mark.parametrize(
    ("value", "text"), [("999999", "unknown_syscall:999999"), (-1, "unknown_syscall:-1"), ("x", "unknown_syscall:x")]
)
def test_not_a_syscall(value, text):
    """What is no number of a system call stays visible."""
    assert text == syscall(value)


def test_syscall_as_text():
    """Decimal text is a number."""
    number, name = next(iter(syscall_names().items()))

    assert name == syscall(str(number))
