# SPDX-License-Identifier: Apache-2.0
"""The background thread that empties the ring buffers."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import opentelemetry.context as otel

from ebpftrace.kernel.ringbuf import Batch, RingReader, name_thread
from ebpftrace.spans.clock import Clock
from ebpftrace.spans.green import Nap, settle, threads_are_greenlets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ebpftrace.kernel.maps import Map

logger = logging.getLogger("ebpftrace.spans")

# Programs do not wake the reader for single records, so an idle ring shows its spans after this long at most
INTERVAL_MS = 50
_ROUND_MS = 1000  # the clock is looked at this often


class _Change:
    """Something to be done between two batches, and what came of it."""

    def __init__(self, run: Callable[[RingReader], None]) -> None:
        self._run = run
        self.error: Exception | None = None
        self.awaited = True

    def make(self, rings: RingReader) -> None:
        """Do it; one that fails must not take the others with it."""
        try:
            self._run(rings)
        except Exception as error:
            self.error = error
            if not self.awaited:
                logger.exception("a change of what the reader reads came late, and failed")


class Reader:
    """Drains all rings until it is closed.

    Where threads are greenlets, it is one, which looks into the rings and sleeps in turns.

    Args:
        rings: by the number that their records come with.
        consume: takes each batch, in this thread, before the next one is read.
        clock: refreshed in this thread.
    """

    def __init__(
        self, rings: Mapping[int, Map], consume: Callable[[Batch, Clock], None], *, clock: Clock | None = None
    ) -> None:
        self._consume = consume
        self._clock = clock or Clock()
        self._changes: list[_Change] = []
        self._rings = RingReader()
        self._stop = False
        self._asked = 0
        self._answered = 0
        self._ended = self._forgotten = self._moving = False
        self.batches = 0
        self.errors = 0
        self.lost_records = 0
        self.last_round_at = 0.0
        self._in_hand = 0
        try:
            for number, ring in rings.items():
                self._rings.add(ring, number)
            self._begin()
        except BaseException:
            self._rings.close()
            raise

    def _begin(self) -> None:
        self._nap = Nap() if threads_are_greenlets() else None
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="ebpftrace-reader", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        thread, ident = threading.current_thread(), threading.get_ident()
        try:
            self._drain()
        finally:
            settle(thread, ident)
            if not self._moving:
                with self._condition:  # who asked too late must not wait for an answer
                    self._ended = True
                    self._condition.notify_all()

    def _drain(self) -> None:
        if self._nap is None:  # else it is the application's thread
            name_thread("ebpftrace")
        # what the exporter does in this thread is not the application's doing: no spans about it
        otel.attach(otel.set_value(otel._SUPPRESS_INSTRUMENTATION_KEY, True))
        next_refresh = time.monotonic()
        emptied = True
        while not self._moving:
            if self._nap is not None:
                self._nap.take(0 if self._awaited or not emptied else INTERVAL_MS / 1000)
                if self._forgotten:
                    return
            stop, asked = self._stop, self._asked
            try:
                self._change()
                emptied = self._round()
            except Exception:  # noqa: BLE001
                self._failed()  # the thread must live: the rings fill up without it
                emptied = True
                time.sleep(INTERVAL_MS / 1000)
            if emptied:
                self._answer(asked)
                if stop:
                    return
            if time.monotonic() >= next_refresh:
                self._clock.refresh()
                next_refresh = time.monotonic() + _ROUND_MS / 1000

    def _change(self) -> None:
        with self._condition:
            changes, self._changes = self._changes, []
        for change in changes:
            change.make(self._rings)

    def _round(self) -> bool:
        """Pass on what is there; return whether that was all."""
        at_once = self._awaited or self._nap is not None
        batch = self._rings.wait(interval_ms=INTERVAL_MS, timeout_ms=0 if at_once else _ROUND_MS)
        if batch.records:
            self.batches += 1
            self._in_hand = batch.records
            self._consume(batch, self._clock)
            self._in_hand = 0
        self.last_round_at = time.time()
        return batch.last

    @property
    def _awaited(self) -> bool:
        """Does somebody wait for what is in the rings now?"""
        return self._stop or self._asked != self._answered

    def _wake(self) -> None:
        self._rings.wake()
        if self._nap is not None:
            self._nap.end()

    def _failed(self) -> None:
        self.errors += 1
        self.lost_records += self._in_hand
        self._in_hand = 0
        if self.errors == 1:
            logger.warning("a batch of kernel records could not be passed on; later ones are counted", exc_info=True)  # noqa: LOG014

    def _answer(self, asked: int) -> None:
        """All that was in the rings when `asked` was read has been emitted."""
        if asked != self._answered:
            with self._condition:
                self._answered = asked
                self._condition.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until every record submitted before this call has been emitted; False when time ran out."""
        if self.current:  # an exporter that flushes in on_end()
            return False
        with self._condition:
            if self._ended:
                return True
            self._asked += 1
            mine = self._asked
            self._wake()  # with the lock held: the thread cannot end now, nor close() free the rings
            return self._condition.wait_for(lambda: self._ended or self._answered >= mine, timeout_s)

    def between_batches(self, change: Callable[[RingReader], None], timeout_s: float) -> bool:
        """Run `change` in the reader's thread, while it holds no batch; False when it did not get to it in time.

        For adding and removing rings. When this returns, what was in all rings before has been emitted too. What
        `change` raises is raised here; when it came too late for that, it is logged.
        """
        mine = _Change(change)
        with self._condition:
            self._changes.append(mine)
        done = self.flush(timeout_s) and not self._ended
        mine.awaited = False
        if mine.error is not None:
            raise mine.error
        return done

    @property
    def alive(self) -> bool:
        """Does the thread run?"""
        return self._thread.is_alive()

    @property
    def current(self) -> bool:
        """Is this the reader's own thread: an exporter's code?"""
        return threading.current_thread() is self._thread

    def close(self, timeout_s: float = 5.0) -> bool:
        """Empty the rings and end the thread; idempotent. False when it did not end in time. Not from that thread."""
        self._stop = True
        if self._thread.is_alive():
            self._wake()
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                logger.warning("the exporter still holds the reader after %.0f s; last spans may be lost", timeout_s)
                return False
        self._rings.close()
        return True

    def follow_threads(self) -> None:
        """Go on as a greenlet if this began as a thread, before threads became greenlets; from one of these."""
        if self._nap is not None or self._ended or self._forgotten or not threads_are_greenlets():
            return
        self._moving = True
        self._rings.wake()
        self._thread.join(_ROUND_MS / 1000)
        self._moving = False
        if not self._thread.is_alive():  # else an exporter holds it; the next call may find it free
            self._begin()

    def forget(self) -> None:
        """In the child of a fork: let go of the file descriptors. The thread is not here; if a greenlet, it is."""
        self._forgotten = True
        self._rings.close()
