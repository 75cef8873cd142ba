# SPDX-License-Identifier: Apache-2.0
"""What becomes of the reader's batches: spans for the SDK's exporters, or OTLP bytes.

Both ways give the same spans and the same counters. A pipeline is used by the reader's thread; `stats` by any.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from ebpftrace.spans import _otlp
from ebpftrace.spans.native import native_layout
from ebpftrace.spans.plan import REASONS, Counts, RecordStats, RingPlan

if TYPE_CHECKING:
    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.kernel.ringbuf import Batch
    from ebpftrace.spans.clock import Clock
    from ebpftrace.spans.model import KernelSpan

__all__ = ["Chunk", "NativePipeline", "Pipeline", "RecordStats", "Rings", "SdkPipeline"]

Rings = Mapping[int, "Sequence[RecordLayout]"] | Sequence["Sequence[RecordLayout]"]
"""The kinds of records of each ring buffer, by the number that its records come with. A ring is one program's."""


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Encoded spans of one service and one program; payloads of such chunks can be joined.

    Args:
        service: `service.name` of their resource; "" = the sink's own.
        program: whose records they were.
        payload: the field ScopeSpans.spans, once for each span.
        count: of the spans.
    """

    service: str
    program: str
    payload: bytes
    count: int


class Pipeline(Protocol):
    """Takes the records of all ring buffers."""

    def consume(self, batch: Batch, clock: Clock) -> None:
        """Make spans of a batch and hand them on. What cannot become one is counted."""

    def flush_pending(self) -> None:
        """Hand on what an error in `consume` may have left behind; otherwise nothing ever waits."""

    def replace(self, rings: Rings) -> None:
        """Describe other rings, between two batches; a program's counters go on.

        Raises:
            ConfigError: decoders do not fit their columns; everything stays as it was.
        """

    def stats(self) -> dict[str, RecordStats]:
        """Return the counters of each program that has a ring now; they only grow, also over `replace`."""

    @property
    def stray(self) -> int:
        """Records of rings that nobody described."""


def _by_number(rings: Rings) -> dict[int, tuple[RecordLayout, ...]]:
    pairs = rings.items() if isinstance(rings, Mapping) else enumerate(rings)
    return {number: tuple(layouts) for number, layouts in pairs if layouts}


class SdkPipeline:
    """Makes `KernelSpan`s, in Python.

    Args:
        rings: of all programs.
        emit: takes the spans of a batch.

    Raises:
        ConfigError: decoders do not fit their columns.
    """

    def __init__(self, rings: Rings, emit: Callable[[list[KernelSpan]], None]) -> None:
        self._emit = emit
        self._counts: dict[str, Counts] = {}
        self._plans: dict[int, RingPlan] = {}
        self.stray = 0
        self.replace(rings)

    def replace(self, rings: Rings) -> None:
        """See `Pipeline`."""
        plans = {}
        for number, layouts in _by_number(rings).items():
            plan = self._plans.get(number)
            if plan is None or plan.layouts != layouts:
                program = layouts[0].program
                plan = RingPlan(layouts, self._counts.get(program) or Counts(program))
                self._counts.setdefault(program, plan.counts)
            plans[number] = plan
        self._plans = plans

    def consume(self, batch: Batch, clock: Clock) -> None:
        """See `Pipeline`."""
        places: dict[int, list[tuple[int, int]]] = {}
        for ring, offset, size in batch:
            places.setdefault(ring, []).append((offset, size))
        spans: list[KernelSpan] = []
        for ring, found in places.items():
            plan = self._plans.get(ring)
            if plan is None:
                self.stray += len(found)
            else:
                spans += plan.decode(batch.data, found, clock)
        if spans:
            self._emit(spans)

    def flush_pending(self) -> None:
        """See `Pipeline`."""

    def stats(self) -> dict[str, RecordStats]:
        """See `Pipeline`."""
        return {plan.program: plan.counts.stats() for plan in list(self._plans.values())}


class NativePipeline:
    """Makes OTLP bytes, in C.

    Args:
        rings: of all programs.
        put: takes the chunks of a batch.

    Raises:
        ConfigError: decoders do not fit their columns.
    """

    def __init__(self, rings: Rings, put: Callable[[list[Chunk]], None]) -> None:
        self._put = put
        self._encoder = _otlp.Encoder()
        self._rings: dict[int, tuple[RecordLayout, ...]] = {}
        self._earlier: dict[str, Counter[str]] = {}  # what rings counted that are gone, by program
        self._logs: dict[str, Counts] = {}
        self._changing = threading.Lock()
        self.replace(rings)

    def replace(self, rings: Rings) -> None:
        """See `Pipeline`."""
        wanted = _by_number(rings)
        changed = {number: layouts for number, layouts in wanted.items() if self._rings.get(number) != layouts}
        described = {number: self._describe(layouts) for number, layouts in changed.items()}
        with self._changing:
            for number in self._rings.keys() - wanted.keys() | changed.keys():
                if number in self._rings:
                    program = self._rings[number][0].program
                    self._earlier.setdefault(program, Counter()).update(self._encoder.counts(number))
                self._encoder.set_ring(number, described.get(number))
            self._rings = wanted

    def _describe(self, layouts: Sequence[RecordLayout]) -> list[_otlp.Layout]:
        program = layouts[0].program
        log = self._logs.setdefault(program, Counts(program)).log
        return [native_layout(layout, log) for layout in layouts]

    def consume(self, batch: Batch, clock: Clock) -> None:
        """See `Pipeline`."""
        self._encoder.feed(batch.data, clock.offset_ns)
        self.flush_pending()

    def flush_pending(self) -> None:
        """See `Pipeline`."""
        chunks = [Chunk(*chunk) for chunk in self._encoder.take()]
        if chunks:
            self._put(chunks)

    @property
    def stray(self) -> int:
        """See `Pipeline`."""
        return self._encoder.stray

    def stats(self) -> dict[str, RecordStats]:
        """See `Pipeline`."""
        totals: dict[str, Counter[str]] = {}
        with self._changing:
            for number, layouts in self._rings.items():
                program = layouts[0].program
                if program not in totals:
                    totals[program] = Counter(self._earlier.get(program, {}))
                totals[program].update(self._encoder.counts(number))
        return {
            program: RecordStats(total["records"], {reason: total[reason] for reason in REASONS})
            for program, total in totals.items()
        }
