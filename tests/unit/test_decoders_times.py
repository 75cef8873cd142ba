# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.config.model import DecoderConfig
from ebpftrace.decoders import times
from ebpftrace.decoders.times import duration, micros, rfc3339, timestamp
from ebpftrace.decoders.values import Place


def test_duration():
    """Nanoseconds are seconds."""
    assert (1.5, 0.0) == (duration(1_500_000_000), duration(0))


def test_micros():
    """Microseconds are nanoseconds, all of them."""
    assert (3_000, 0, 18_446_744_073_709_551_615_000) == (micros(3), micros(0), micros((1 << 64) - 1))


@pytest.mark.parametrize(
    ("epoch_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (1_700_000_000_000_000_001, "2023-11-14T22:13:20.000000001Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (1 << 80, f"unknown:{1 << 80}"),
    ],
)
def test_rfc3339(epoch_ns, text):
    """A time is written to the nanosecond, in UTC."""
    assert text == rfc3339(epoch_ns)


@given(st.integers(-(1 << 63), 1 << 64))
def test_any_time(value):
    """Any 64 bits are some time."""
    assert rfc3339(value).endswith("Z")


def test_timestamp():
    """A time of the kernel is told in wall time, and 0 is none."""
    decode = timestamp(Place(DecoderConfig("timestamp")))
    before = rfc3339(time.time_ns() - 1_000_000)
    now = decode(time.monotonic_ns())

    assert before < now < rfc3339(time.time_ns() + 1_000_000)
    assert None is decode(0)


def test_wall_clock_is_set():
    """When the wall clock was set, times follow within a second of asking."""

    class Clock:
        refreshed = 0

        def refresh(self):
            self.refreshed += 1

        def to_epoch(self, mono_ns):
            return mono_ns + self.refreshed

    wall = times._Wall(Clock())
    first = wall.epoch(5)
    wall._next = 0

    assert (5, 6, 6) == (first, wall.epoch(5), wall.epoch(5))
