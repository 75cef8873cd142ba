# SPDX-License-Identifier: Apache-2.0
"""Where spans go: the protocol of a sink, its counters, and the sink that goes nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from ebpftrace.spans.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ebpftrace.spans.model import KernelSpan


class SinkStats(msgspec.Struct, frozen=True):
    """What became of the spans a sink was given, since the process started (a forked child starts from 0).

    With one exporter, `emitted - exported - failed - dropped` spans are still on their way. With several, `exported`
    and `failed` count a span once for each exporter.

    Args:
        emitted: spans given to `emit`.
        exported: spans an exporter accepted; for a sink into somebody else's provider, spans its processors took.
        failed: spans an exporter refused, or that a span processor raised on.
        dropped: spans nobody tried to export: no room in the queue, no exporter, no valid id, or the sink was closed.
    """

    emitted: int = 0
    exported: int = 0
    failed: int = 0
    dropped: int = 0


class Sink(Protocol):
    """Takes spans from the reader's thread; owned and closed by whoever made it."""

    def emit(self, spans: Sequence[KernelSpan]) -> None:
        """Pass a batch on. Never raises for a broken or absent backend: it counts."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was emitted has left the process; False when the time was not enough or it failed."""

    def close(self) -> None:
        """Flush for a short while, then release everything. Idempotent; later spans count as dropped."""

    @property
    def stats(self) -> SinkStats:
        """The counters now."""


class NullSink:
    """Counts every span as dropped.

    Stands in where spans have nowhere to go (`OTEL_TRACES_EXPORTER=none`, no exporter installed), so that the loss is
    still visible in the metrics.

    Args:
        reason: why there is no backend, for whoever shows the stats.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self._tally = Tally()

    def emit(self, spans: Sequence[KernelSpan]) -> None:
        """Count the spans."""
        self._tally.add("dropped", len(spans))

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002  (the protocol's signature)
        """Nothing is ever pending."""
        return True

    def close(self) -> None:
        """Nothing is held."""

    @property
    def stats(self) -> SinkStats:
        """Everything emitted was dropped."""
        dropped = self._tally["dropped"]
        return SinkStats(emitted=dropped, dropped=dropped)
