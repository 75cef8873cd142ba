# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno as numbers

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.decoders.errnos import errno


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (numbers.EPIPE, "EPIPE"),
        ("32", "EPIPE"),
        (-32, "EPIPE"),
        ("-32", "EPIPE"),
        ((1 << 32) - 32, "EPIPE"),
        ((1 << 64) - 32, "EPIPE"),
        (numbers.EDEADLK, "EDEADLK"),
        (numbers.EAGAIN, "EAGAIN"),
        (512, "ERESTARTSYS"),
        (0, None),
        ("0", None),
        (600, "unknown:600"),
        (-600, "unknown:-600"),
        ("EPIPE", "unknown:EPIPE"),
        (1 << 63, f"unknown:{1 << 63}"),
    ],
)
def test_errno(value, name):
    """An error of either sign has its name, no error has none, and one that is not known says so."""
    assert name == errno(value)


@given(st.integers())
def test_any_errno(value):
    """Every number but 0 is some error."""
    assert (value == 0) == (errno(value) is None)
