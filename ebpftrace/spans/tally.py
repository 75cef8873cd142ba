# SPDX-License-Identifier: Apache-2.0
"""Counters that several threads add to and that a fork does not break."""

from __future__ import annotations

from ebpftrace.spans.fork import ForkLock, repair_in_child


class Tally:
    """Named counters; a forked child starts from zero, for the parent reports what the parent did."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._counts: dict[str, int] = {}
        repair_in_child(self)

    def after_fork(self) -> None:
        """Forget the parent's counts."""
        self._counts = {}

    def add(self, name: str, amount: int = 1) -> None:
        """Add `amount` to the counter `name`, which starts at 0."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + amount

    def first(self, name: str) -> bool:
        """Tell once, to the first caller only, that `name` happened; for log lines that must not repeat."""
        with self._lock:
            seen = self._counts.get(name, 0)
            self._counts[name] = seen + 1
        return seen == 0

    def __getitem__(self, name: str) -> int:
        with self._lock:
            return self._counts.get(name, 0)
