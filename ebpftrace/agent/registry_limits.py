# SPDX-License-Identifier: Apache-2.0
"""How much of the agent, and of the machine's memory, registered applications can take."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ebpftrace.agent.registry_tables import Ids

HALF_OPEN = 64
"""Connections that have said nothing yet."""

HALF_OPEN_OF_USER = 16

HELLO_S = 2.0
"""What such a connection has to say its hello in."""

# Registrations of one user, a second and at once: a server starts all of its workers together. Each, and its end, takes
# some tens of ms, in which the kernel waits until no BPF program looks at the map of processes as it was.
_RATE, _BURST = 10.0, 64.0
_MAX_USERS = 4096
_LINES, _LINES_S = 20, 10.0
_RETIRED_S = 600.0


@dataclass(frozen=True, slots=True)
class Quotas:
    """Tables, of about 320 KiB each.

    Args:
        tables: in all; the map of processes has room for 4096.
        tables_of_user: of one user.
    """

    tables: int = 512
    tables_of_user: int = 128


class Rates:
    """How often each user may register: a bucket of permits for each, filled by time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[int, tuple[float, float]] = {}  # user: permits, when

    def take(self, uid: int) -> bool:
        """Use one permit of a user's; False when none is left."""
        now = self._clock()
        if len(self._buckets) >= _MAX_USERS:
            self._buckets = {user: each for user, each in self._buckets.items() if _filled(each, now) < _BURST}
            if len(self._buckets) >= _MAX_USERS and uid not in self._buckets:
                return False
        permits = _filled(self._buckets.get(uid, (_BURST, now)), now)
        self._buckets[uid] = (permits - 1 if permits >= 1 else permits, now)
        return permits >= 1


class Lines:
    """How many log lines others can make the agent write: so many in a while, then a count of the rest."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._written = self._left_out = 0

    def take(self) -> int | None:
        """Return how many lines were left out before this one; None when this one is to be left out."""
        now = self._clock()
        if now - self._since >= _LINES_S:
            self._since, self._written = now, 0
        if self._written >= _LINES:
            self._left_out += 1
            return None
        self._written += 1
        left_out, self._left_out = self._left_out, 0
        return left_out


def _filled(bucket: tuple[float, float], now: float) -> float:
    permits, since = bucket
    return min(_BURST, permits + (now - since) * _RATE)


class Accounts:
    """The tables that count for each user: those in force, and those that an application keeps though it has left.

    A table that is out of force can do no harm, but its memory is the agent's, of which the lines are four fifths. So
    it counts until the kernel has neither of its maps any more; where the kernel does not tell, for some minutes.

    Args:
        quotas: the most.
        held: the ids of all slots and lines that the kernel has; None = it does not tell.
    """

    def __init__(
        self, quotas: Quotas, held: Callable[[], set[int] | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quotas = quotas
        self._held = held
        self._clock = clock
        self._users: dict[Ids, int] = {}  # table: user
        self._retired: dict[Ids, float] = {}  # table: since
        self._of_user: Counter[int] = Counter()

    def why_not(self, uid: int) -> tuple[str, str]:
        """Return why a user gets no further table, as a word and in words; ("", "") when one is to be had."""
        if self._over(uid):
            self.settle()
        if self._of_user[uid] >= self._quotas.tables_of_user:
            return "quota", (
                f"user {uid} has {self._of_user[uid]} context tables already, which is the most "
                "(the agent's option --max-tables-per-uid)"
            )
        if len(self._users) >= self._quotas.tables:
            return "full", f"the agent has {len(self._users)} context tables, which is the most (--max-tables)"
        return "", ""

    def _over(self, uid: int) -> bool:
        return self._of_user[uid] >= self._quotas.tables_of_user or len(self._users) >= self._quotas.tables

    def add(self, table: Ids, uid: int) -> None:
        """Count a table, in force from now on."""
        self._users[table] = uid
        self._of_user[uid] += 1

    def retire(self, table: Ids) -> None:
        """A table is out of force; it counts while somebody has it."""
        self._retired[table] = self._clock()

    def settle(self) -> None:
        """Count no more what nobody has."""
        if not self._retired:
            return
        held, old = self._held(), self._clock() - _RETIRED_S
        for table, since in list(self._retired.items()):
            if held.isdisjoint(table) if held is not None else since < old:
                del self._retired[table]
                uid = self._users.pop(table)
                self._of_user[uid] -= 1
                if not self._of_user[uid]:
                    del self._of_user[uid]

    @property
    def tables(self) -> int:
        """How many count."""
        return len(self._users)

    @property
    def retired(self) -> int:
        """How many of these are out of force."""
        return len(self._retired)
