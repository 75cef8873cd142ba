# SPDX-License-Identifier: Apache-2.0
"""Kernel time to wall time.

`bpf_ktime_get_ns()` is CLOCK_MONOTONIC, spans carry CLOCK_REALTIME. The kernel slews both together, so the offset
between them is constant except when the wall clock is *stepped* (NTP at boot, `settimeofday`, a leap second) or the
machine *sleeps* (CLOCK_MONOTONIC stands still, CLOCK_REALTIME does not).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_TIMENS = Path("/proc/self/timens_offsets")


class Clock:
    """A calibrated offset from kernel time to epoch time.

    One offset serves all spans until it is clearly wrong, so siblings keep the nanosecond order the kernel saw. What
    that cannot give: a record taken before a step but decoded after `refresh` noticed it (or the other way round) is
    off by the step; `steps` tells that it happened. After a suspend that window is what lay in the ring buffers.

    Args:
        samples: brackets per calibration; the narrowest one counts, so a preemption in between does no harm.
        tolerance_ns: a new offset is adopted only when it moved by more than this. 20 µs is far above the bracket of
            a vDSO clock (about 50 ns) and far below anything a person looks for in a waterfall.
        wall: CLOCK_REALTIME in ns.
        monotonic: CLOCK_MONOTONIC in ns as the *kernel* sees it; by default read through this process's time namespace
            and corrected for that namespace's offset.
    """

    def __init__(
        self,
        *,
        samples: int = 16,
        tolerance_ns: int = 20_000,
        wall: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] | None = None,
    ) -> None:
        self._samples = samples
        self._tolerance_ns = tolerance_ns
        self._wall = wall
        self._monotonic = monotonic or time.monotonic_ns
        self._namespace_ns = 0 if monotonic else namespace_offset_ns()
        self._steps = 0
        self._offset_ns, self._bracket_ns = self._calibrate()

    @property
    def offset_ns(self) -> int:
        """Epoch minus kernel time, as adopted."""
        return self._offset_ns

    @property
    def bracket_ns(self) -> int:
        """Width of the bracket the adopted offset was measured in; the offset is wrong by at most half of it."""
        return self._bracket_ns

    @property
    def steps(self) -> int:
        """How often `refresh` adopted another offset."""
        return self._steps

    def to_epoch(self, mono_ns: int) -> int:
        """Turn a `bpf_ktime_get_ns()` value into epoch nanoseconds. Safe from any thread."""
        return mono_ns + self._offset_ns

    def refresh(self) -> bool:
        """Measure again, about once a second; adopt the result only if the clock was stepped or drifted.

        Returns:
            Whether another offset was adopted.
        """
        offset_ns, bracket_ns = self._calibrate()
        # A wide bracket (this thread was preempted in every sample) proves nothing smaller than itself.
        if abs(offset_ns - self._offset_ns) <= max(self._tolerance_ns, bracket_ns):
            return False
        self._offset_ns = offset_ns
        self._bracket_ns = bracket_ns
        self._steps += 1
        return True

    def _calibrate(self) -> tuple[int, int]:
        best_offset = 0
        best_bracket: int | None = None
        for _ in range(self._samples):
            before = self._monotonic()
            wall = self._wall()
            bracket = self._monotonic() - before
            if best_bracket is None or bracket < best_bracket:
                best_bracket = bracket
                best_offset = wall - (before + bracket // 2)
        return best_offset + self._namespace_ns, best_bracket or 0


def namespace_offset_ns() -> int:
    """Return what this process's CLOCK_MONOTONIC is ahead of the kernel's, in ns."""
    # In a time namespace (time_namespaces(7)) this process reads CLOCK_MONOTONIC plus an offset that bpf_ktime_get_ns
    # does not have. A kernel without them (< 5.6, or CONFIG_TIME_NS=n) has no such file, and no offset.
    try:
        lines = _TIMENS.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, seconds, nanoseconds = line.split()
        if name in {"monotonic", "1"}:
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return 0
