# SPDX-License-Identifier: Apache-2.0
"""What a forked child must repair: locks that a thread of the parent held, and counts of the parent's work."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType


class _Forked(Protocol):
    def after_fork(self) -> None: ...


# One handler for all objects: a fork handler cannot be taken back, so one per object would pile up.
_alive: weakref.WeakSet[_Forked] = weakref.WeakSet()


def repair_in_child(thing: _Forked) -> None:
    """Have `thing.after_fork()` called in every forked child, for as long as `thing` lives."""
    _alive.add(thing)


def _repair_all() -> None:
    for thing in list(_alive):
        thing.after_fork()


os.register_at_fork(after_in_child=_repair_all)


class ForkLock:
    """A lock that is free in a forked child, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        repair_in_child(self)

    def after_fork(self) -> None:
        """Replace the lock: its holder does not exist here."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
