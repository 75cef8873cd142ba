# SPDX-License-Identifier: Apache-2.0
"""Where records come from: a thread of our own, the caller's when it asks, or BCC beside its own callback."""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from ebpftrace.errors import ConfigError
from ebpftrace.kernel.ringbuf import Batch, RingReader
from ebpftrace.spans.clock import Clock
from ebpftrace.spans.reader import INTERVAL_MS, Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ebpftrace.bcc.reader import Program
    from ebpftrace.kernel.maps import Map
    from ebpftrace.spans.pipeline import Pipeline

_TAPPED_BYTES = 16 << 20  # of records that wait for the thread that makes spans
_CLOCK_S = 1.0
_CLOSE_S = 5.0


class Source(Protocol):
    """One of the three ways."""

    def poll(self, timeout_ms: int) -> int:
        """Read; return the number of records."""

    def flush(self, timeout_s: float) -> bool:
        """Make spans of all that was submitted so far."""

    def close(self) -> None:
        """Read what is left, and stop."""

    def lost(self, number: int) -> int:
        """Return the records that a buffer had no room for."""

    @property
    def thrown_away(self) -> int:
        """Records that were read, and of which nothing was made."""


class _Watched(Reader):
    """A reader that ends when the BPF object it reads from is closed: after what that had submitted."""

    def __init__(self, rings: Mapping[int, Map], pipeline: Pipeline, program: Program) -> None:
        self._program = program
        super().__init__(rings, pipeline.consume)

    def _round(self) -> bool:
        over = self._program.over()
        emptied = super()._round()
        if over and emptied and not self._stop:
            self._stop = True
            self._program.note_end()
        return emptied

    def lost(self, number: int) -> int:
        return self._rings.lost(number)


class ThreadSource:
    """Our own thread reads, through our own descriptors, so that BCC's polling has nothing to do with it.

    Args:
        maps: the buffers' maps, by number; closed with this.
        pipeline: takes the records.
        program: looked at once a second at least.
    """

    def __init__(self, maps: Mapping[int, Map], pipeline: Pipeline, program: Program) -> None:
        self._maps = maps
        self._lost = dict.fromkeys(maps, 0)
        self._counting = threading.Lock()  # the rings must not go while they are asked what they lost
        self._reader = _Watched(maps, pipeline, program)

    def poll(self, timeout_ms: int) -> int:  # noqa: ARG002  (the protocol's signature)
        """See `Source`."""
        raise ConfigError("a thread reads these buffers: make the reader with thread=False to poll yourself")

    def flush(self, timeout_s: float) -> bool:
        """See `Source`."""
        return self._reader.flush(timeout_s)

    def lost(self, number: int) -> int:
        """See `Source`."""
        with self._counting:
            self._lost[number] = max(self._lost[number], self._reader.lost(number))
            return self._lost[number]

    @property
    def thrown_away(self) -> int:
        """See `Source`."""
        return self._reader.lost_records

    def close(self) -> None:
        """See `Source`."""
        self._reader.flush(_CLOSE_S)
        for number in self._maps:
            self.lost(number)
        with self._counting:
            ended = self._reader.close()
        if ended:
            for each in self._maps.values():
                each.close()


class PollSource:
    """The caller's thread reads, when it asks.

    Args:
        maps: the buffers' maps, by number; closed with this.
        pipeline: takes the records.
    """

    thrown_away = 0

    def __init__(self, maps: Mapping[int, Map], pipeline: Pipeline) -> None:
        self._maps = maps
        self._pipeline = pipeline
        self._clock = Clock()
        self._refreshed = time.monotonic()
        self._lost = dict.fromkeys(maps, 0)
        self._rings = RingReader()
        try:
            for number, each in maps.items():
                self._rings.add(each, number)
        except BaseException:
            self._rings.close()
            raise

    def poll(self, timeout_ms: int) -> int:
        """See `Source`."""
        now = time.monotonic()
        if now - self._refreshed >= _CLOCK_S:
            self._clock.refresh()
            self._refreshed = now
        batch = self._rings.wait(interval_ms=INTERVAL_MS, timeout_ms=timeout_ms)
        if batch.records:
            self._pipeline.consume(batch, self._clock)
        return batch.records

    def flush(self, timeout_s: float) -> bool:
        """See `Source`."""
        deadline = time.monotonic() + timeout_s
        while self.poll(0):
            if time.monotonic() > deadline:
                return False
        return True

    def lost(self, number: int) -> int:
        """See `Source`."""
        self._lost[number] = max(self._lost[number], self._rings.lost(number))
        return self._lost[number]

    def close(self) -> None:
        """See `Source`."""
        self.flush(_CLOSE_S)
        for number in self._maps:
            self.lost(number)
        self._rings.close()
        for each in self._maps.values():
            each.close()


class _Tapped(Reader):
    """A reader without rings: callbacks bring the records."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._records: list[bytes] = []
        self._bytes = 0
        self._taking = threading.Lock()
        self.no_room = 0
        super().__init__({}, pipeline.consume)

    def put(self, number: int, data: bytes) -> None:
        """Keep a record; from the thread in which BCC polls."""
        if self._stop:  # closed; BCC goes on reading for the application's callback
            return
        with self._taking:
            if self._bytes >= _TAPPED_BYTES:
                self.no_room += 1
                return
            self._records.append(struct.pack("=II", number, len(data)) + data.ljust((len(data) + 7) & ~7, b"\0"))
            self._bytes += len(data)

    def _round(self) -> bool:
        waiting = self._stop or self._asked != self._answered
        self._rings.wait(interval_ms=INTERVAL_MS, timeout_ms=0 if waiting else INTERVAL_MS)
        with self._taking:
            records, self._records, self._bytes = self._records, [], 0
        if records:
            self.batches += 1
            self._in_hand = len(records)
            self._consume(Batch(memoryview(b"".join(records)), len(records)), self._clock)
            self._in_hand = 0
        self.last_round_at = time.time()
        return True


class TapSource:
    """BCC reads, in the thread that polls it; each record goes to its callback, and a copy of it to us.

    Args:
        pipeline: takes the records.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._reader = _Tapped(pipeline)
        self._lost: dict[int, int] = {}

    def tap(self, number: int, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Return what to give BCC in place of `callback`."""
        put = self._reader.put

        def tapped(context: Any, data: Any, size: int) -> Any:
            put(number, ctypes.string_at(data, size))
            return callback(context, data, size)

        return tapped

    def tap_lost(self, number: int, callback: Any) -> Callable[[int], None]:
        """Return what to give BCC in place of the callback for lost records."""
        self._lost[number] = 0

        def lost(count: int) -> None:
            self._lost[number] += count
            if callback is not None:
                callback(count)
            else:
                sys.stderr.write(f"Possibly lost {count} samples\n")

        return lost

    def poll(self, timeout_ms: int) -> int:  # noqa: ARG002  (the protocol's signature)
        """See `Source`."""
        raise ConfigError("BCC reads these buffers: call perf_buffer_poll() or ring_buffer_poll() of the BPF object")

    def flush(self, timeout_s: float) -> bool:
        """See `Source`: of what BCC was polled for."""
        return self._reader.flush(timeout_s)

    def lost(self, number: int) -> int:
        """See `Source`."""
        return self._lost.get(number, 0)

    @property
    def thrown_away(self) -> int:
        """See `Source`."""
        return self._reader.no_room + self._reader.lost_records

    def close(self) -> None:
        """See `Source`."""
        self._reader.flush(_CLOSE_S)
        self._reader.close()
