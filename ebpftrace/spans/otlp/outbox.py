# SPDX-License-Identifier: Apache-2.0
"""What waits to be sent: a queue bounded by bytes, the request on its way, and the count of every span."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ebpftrace.spans.pipeline import Chunk


class Limits(msgspec.Struct, frozen=True):
    """How much waits, and for how long.

    Args:
        queue_bytes: of spans that wait or are on their way.
        queue_spans: likewise in spans; None = no limit.
        request_bytes: of one request's spans; a larger chunk goes alone.
        delay_s: the longest a chunk waits for others.
    """

    queue_bytes: int
    queue_spans: int | None
    request_bytes: int
    delay_s: float


class Totals(msgspec.Struct):
    """Spans by what became of them."""

    emitted: int = 0
    exported: int = 0
    queued: int = 0
    failures: Counter[str] = msgspec.field(default_factory=Counter)
    drops: Counter[str] = msgspec.field(default_factory=Counter)


class Outbox:
    """Between the threads that put chunks in and the one that sends them.

    A chunk is taken when it fits, or when the box is empty: otherwise a chunk above the limit could never be sent.

    Args:
        limits: how much waits.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._enough_bytes = min(limits.request_bytes, limits.queue_bytes // 2)
        self._enough_spans = None if limits.queue_spans is None else max(1, limits.queue_spans // 2)
        self._condition = threading.Condition()
        self._waiting: deque[tuple[Chunk, float]] = deque()
        self._waiting_bytes = self._waiting_spans = 0
        self._on_its_way: list[Chunk] = []
        self._bytes = 0  # waiting and on their way
        self._totals = Totals()
        self._put = self._settled = 0  # chunks, ever
        self._hurry_to = 0  # chunks up to this one do not wait for others
        self._hurries = 0
        self._closing_at: float | None = None
        self._over = False

    def put(self, chunks: Sequence[Chunk]) -> bool:
        """Add chunks; those that do not fit are dropped and counted. Returns whether there is anything to send."""
        now = time.monotonic()
        with self._condition:
            was_empty = not self._waiting
            for chunk in chunks:
                self._add(chunk, now)
            if self._waiting and (was_empty or self._enough()):
                self._condition.notify_all()
            return bool(self._waiting)

    def drop(self, count: int, reason: str) -> None:
        """Count spans that were given to us and cannot be sent."""
        with self._condition:
            self._totals.emitted += count
            self._totals.drops[reason] += count

    def _add(self, chunk: Chunk, now: float) -> None:
        totals, size = self._totals, len(chunk.payload)
        totals.emitted += chunk.count
        if self._closing_at is not None:
            totals.drops["closed"] += chunk.count
            return
        spans = self._limits.queue_spans
        fits = self._bytes + size <= self._limits.queue_bytes and (
            spans is None or totals.queued + chunk.count <= spans
        )
        if not fits and totals.queued:
            totals.drops["queue_full"] += chunk.count
            return
        self._waiting.append((chunk, now + self._limits.delay_s))
        self._waiting_bytes += size
        self._waiting_spans += chunk.count
        self._bytes += size
        totals.queued += chunk.count
        self._put += 1

    def _enough(self) -> bool:
        full = self._enough_spans is not None and self._waiting_spans >= self._enough_spans
        return full or self._waiting_bytes >= self._enough_bytes

    def take(self) -> list[Chunk]:
        """Wait until a request's worth of chunks is there or the oldest has waited long enough; [] = it is over."""
        with self._condition:
            while not self._over:
                if not self._waiting:
                    if self._closing_at is not None:
                        break
                    self._condition.wait()
                    continue
                wait_s = self._waiting[0][1] - time.monotonic()
                hurry = self._closing_at is not None or self._settled < self._hurry_to
                if hurry or wait_s <= 0 or self._enough():
                    return self._pick()
                self._condition.wait(wait_s)
            return []

    def _pick(self) -> list[Chunk]:
        picked: list[Chunk] = []
        size = 0
        while self._waiting:
            chunk = self._waiting[0][0]
            if picked and size + len(chunk.payload) > self._limits.request_bytes:
                break
            self._waiting.popleft()
            picked.append(chunk)
            size += len(chunk.payload)
        self._waiting_bytes -= size
        self._waiting_spans -= sum(chunk.count for chunk in picked)
        self._on_its_way = picked
        return picked

    def settle(self, *, lost: int = 0, failure: str = "", drop: str = "") -> None:
        """Count the chunks taken last: as exported, but for `lost` spans, which failed or were dropped for a reason.

        Does nothing when `give_up` has counted them already.
        """
        with self._condition:
            if self._over:
                return
            count = sum(chunk.count for chunk in self._on_its_way)
            lost = min(lost, count)
            self._totals.exported += count - lost
            if lost:
                reasons, reason = (self._totals.drops, drop) if drop else (self._totals.failures, failure)
                reasons[reason] += lost
            self._totals.queued -= count
            self._bytes -= sum(len(chunk.payload) for chunk in self._on_its_way)
            self._settled += len(self._on_its_way)
            self._on_its_way = []
            self._condition.notify_all()

    def pause(self, wait_s: float, *, firm: bool, hurries: int) -> bool:
        """Wait before another attempt, shorter when somebody flushes or closes.

        Args:
            wait_s: for how long.
            firm: the server asked for it, so nothing makes it shorter.
            hurries: what the property of that name was before the attempt; when it grew, there is no waiting.

        Returns:
            False when it is not worth trying: closing comes to its deadline before.
        """
        until = time.monotonic() + wait_s
        with self._condition:
            while not self._over:
                end = until if self._closing_at is None else min(until, self._closing_at)
                now = time.monotonic()
                if self._closing_at is not None and (now >= self._closing_at or (firm and until >= self._closing_at)):
                    return False
                if now >= until or (self._hurries != hurries and not firm):
                    return True
                self._condition.wait(end - now)
            return False

    def remaining_s(self, timeout_s: float) -> float:
        """How long an attempt may take: `timeout_s`, or less when closing has a deadline before."""
        with self._condition:
            if self._closing_at is None:
                return timeout_s
            return min(timeout_s, self._closing_at - time.monotonic())

    @property
    def hurries(self) -> int:
        """How often somebody flushed or closed."""
        with self._condition:
            return self._hurries

    def flush(self, timeout_s: float) -> bool:
        """Wait until what is in the box now has been settled; False when the time was not enough."""
        with self._condition:
            goal = self._put
            self._hurry_to = max(self._hurry_to, goal)
            self._hurries += 1
            self._condition.notify_all()
            return self._condition.wait_for(lambda: self._over or self._settled >= goal, timeout_s)

    def begin_closing(self, timeout_s: float) -> bool:
        """Take no more chunks and stop sending in `timeout_s`; False when that was said before."""
        with self._condition:
            if self._closing_at is not None:
                return False
            self._closing_at = time.monotonic() + timeout_s
            self._hurries += 1
            self._condition.notify_all()
            return True

    def give_up(self) -> int:
        """End it: whatever is left counts as dropped. Returns how many spans that was."""
        with self._condition:
            left, self._over = self._totals.queued, True
            if left:
                self._totals.drops["closed"] += left
            self._totals.queued = self._bytes = 0
            self._waiting.clear()
            self._condition.notify_all()
            return left

    def totals(self) -> tuple[Totals, int]:
        """Copy the counters, and the bytes that are queued, all of one moment."""
        with self._condition:
            now = self._totals
            copy = msgspec.structs.replace(now, failures=Counter(now.failures), drops=Counter(now.drops))
            return copy, self._bytes
