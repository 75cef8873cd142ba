# SPDX-License-Identifier: Apache-2.0
"""A span exporter around another one that counts, and keeps it from raising."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from ebpftrace.spans.fork import ForkLock
from ebpftrace.spans.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

_log = logging.getLogger("ebpftrace.spans")


class CountingExporter(SpanExporter):
    """Counts accepted and refused spans; the first failure of a row is logged, and so is the recovery.

    Args:
        exporter: the exporter that does the work.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self.exporter = exporter
        self._name = type(exporter).__name__
        self._down = False
        self._shut = False
        self._lock = ForkLock()
        self._tally = Tally()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export through the inner exporter; an exception of it is a FAILURE."""
        reason = "it is shut down" if self._shut else ""
        if not reason:
            try:
                result = self.exporter.export(spans)
                reason = "" if result is SpanExportResult.SUCCESS else "it reported a failure"
            except Exception as err:  # noqa: BLE001  (that is what this class is for)
                reason = f"{type(err).__name__}: {err}"
                _log.debug("%s raised", self._name, exc_info=True)
        self._tally.add("failed" if reason else "exported", len(spans))
        self._report(reason)
        return SpanExportResult.FAILURE if reason else SpanExportResult.SUCCESS

    def _report(self, reason: str) -> None:
        was_down, self._down = self._down, bool(reason)
        if reason and not was_down:
            _log.warning("%s lost kernel spans: %s; further losses are only counted", self._name, reason)
        elif was_down and not reason:
            _log.info("%s exports again", self._name)

    @property
    def exported(self) -> int:
        """Spans the inner exporter accepted."""
        return self._tally["exported"]

    @property
    def failed(self) -> int:
        """Spans it refused or raised on."""
        return self._tally["failed"]

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Pass on to the inner exporter, some of which forget to return anything."""
        return self.exporter.force_flush(timeout_millis) is not False

    def shutdown(self) -> None:
        """Shut the inner exporter down once, for they complain about a second time."""
        with self._lock:
            first, self._shut = not self._shut, True
        if first:
            self.exporter.shutdown()
