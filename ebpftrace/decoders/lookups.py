# SPDX-License-Identifier: Apache-2.0
"""What decoders look up outside of the record: remembered, bounded, and never asked for too often.

A record is older than its look-up. So what was found once and is gone now (a process, a cgroup, an interface) stays
known by its old name, until something else has that number or others need the room.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

K = TypeVar("K")
V = TypeVar("V")

_SHARE = 20  # reading a table again and again takes at most a twentieth of one CPU


class _Locked(Protocol):
    def renew_lock(self) -> None: ...


_locked: weakref.WeakSet[_Locked] = weakref.WeakSet()


def after_fork(owner: _Locked) -> None:
    """Have `owner` take a new lock in every child of a fork: another thread may hold the one it has, for ever."""
    _locked.add(owner)


def _renew_locks() -> None:
    for owner in _locked:
        owner.renew_lock()


os.register_at_fork(after_in_child=_renew_locks)


class Cache(Generic[K, V]):
    """Answers to a question, each asked again when it is too old. Safe from any thread.

    Two threads that miss the same key at once both ask: waiting for the other would cost more.

    Args:
        ask: the question; None = there is no answer. It must not raise.
        found_s: for how long an answer counts.
        missing_s: for how long it counts that there is none.
        size: answers kept at most; those not asked again for the longest time go first.
        now: the time in seconds.
    """

    def __init__(
        self,
        ask: Callable[[K], V | None],
        *,
        found_s: float,
        missing_s: float = 1.0,
        size: int = 4096,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._now, self._size = ask, now, size
        self._found_s, self._missing_s = found_s, missing_s
        self._answers: dict[K, tuple[V | None, float]] = {}
        self.renew_lock()
        after_fork(self)

    def renew_lock(self) -> None:
        """Take a new lock, in the child of a fork."""
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """Return the answer for `key`."""
        known = self._answers.get(key)
        now = self._now()
        if known is not None and now < known[1]:
            return known[0]
        answer = self._ask(key)
        until = now + (self._missing_s if answer is None else self._found_s)
        if answer is None and known is not None:
            answer = known[0]
        with self._lock:
            self._answers.pop(key, None)  # so that dict order is age
            while len(self._answers) >= self._size:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = (answer, until)
        return answer

    def __len__(self) -> int:
        return len(self._answers)


class Snapshot(Generic[K, V]):
    """A table that is only read whole, at most every `pause_s` seconds, or rarer when reading it is slow.

    Args:
        load: reads it. It must not raise.
        pause_s: shortest time between two readings.
        now: the time in seconds.
    """

    def __init__(
        self, load: Callable[[], Mapping[K, V]], *, pause_s: float = 1.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._load, self._pause_s, self._now = load, pause_s, now
        self._table: Mapping[K, V] = {}
        self._next = float("-inf")
        self.renew_lock()
        after_fork(self)

    def renew_lock(self) -> None:
        """Take a new lock, in the child of a fork."""
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """Return what the table has for `key`; meant to be asked by a `Cache`, for keys it does not know."""
        if self._now() >= self._next:
            with self._lock:
                begin = self._now()
                if begin >= self._next:
                    self._table = self._load()
                    end = self._now()
                    self._next = end + max(self._pause_s, _SHARE * (end - begin))
        return self._table.get(key)
