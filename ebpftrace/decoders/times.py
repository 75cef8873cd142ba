# SPDX-License-Identifier: Apache-2.0
"""Times of the kernel, for people."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ebpftrace.decoders.values import Decoder, Place
    from ebpftrace.spans.clock import Clock

_SECOND = 1_000_000_000
_REFRESH_S = 1.0
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - without a zone, its text has none to cut off


def duration(value: int) -> float:
    """Nanoseconds as seconds."""
    return value / _SECOND


def micros(value: int) -> int:
    """Microseconds as nanoseconds."""
    return value * 1000


def timestamp(_place: Place) -> Decoder:
    """Make a decoder of CLOCK_MONOTONIC times (ns) into UTC text as of RFC 3339, to the nanosecond.

    0 is nothing: no record is made in the first nanosecond after boot, so the program left the field empty.
    """
    # late: spans need decoders, and only this decoder needs a clock
    from ebpftrace.spans.clock import Clock

    wall = _Wall(Clock())
    return lambda value: rfc3339(wall.epoch(value)) if value else None


def rfc3339(epoch_ns: int) -> str:
    """Return the UTC time `epoch_ns`; one that no calendar has as "unknown:" and itself."""
    seconds, nanoseconds = divmod(epoch_ns, _SECOND)
    try:
        moment = _EPOCH + dt.timedelta(seconds=seconds)
    except OverflowError:
        return f"unknown:{epoch_ns}"
    return f"{moment.isoformat()}.{nanoseconds:09d}Z"


class _Wall:
    """A clock that measures itself again when it is asked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = time.monotonic() + _REFRESH_S

    def epoch(self, mono_ns: int) -> int:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _REFRESH_S
            self._clock.refresh()
        return self._clock.to_epoch(mono_ns)
