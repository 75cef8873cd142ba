# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from spans_support import kernel_span

from ebpftrace.spans.counting import CountingExporter


class Scripted(SpanExporter):
    """Does what the script says, one entry a batch."""

    def __init__(self, *script):
        self.script = list(script)
        self.shutdowns = 0

    def export(self, spans):
        """Do the next thing."""
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def force_flush(self, timeout_millis=30000):
        """Return nothing, like several exporters."""

    def shutdown(self):
        """Count."""
        self.shutdowns += 1


OK, FAILED = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
BATCH = [kernel_span(1), kernel_span(2)]


def test_spans_are_counted_by_result():
    """A refusal and an exception are both failures, and neither gets out."""
    exporter = CountingExporter(Scripted(OK, FAILED, ConnectionError("down"), OK))

    results = [exporter.export(BATCH) for _ in range(4)]

    assert results == [OK, FAILED, FAILED, OK]
    assert (exporter.exported, exporter.failed) == (4, 4)


def test_one_log_line_an_outage(caplog):
    """A backend that stays down is one warning without a traceback; its recovery is news again."""
    exporter = CountingExporter(Scripted(FAILED, ConnectionError("down"), FAILED, OK, FAILED))

    with caplog.at_level(logging.INFO, logger="ebpftrace.spans"):
        for _ in range(5):
            exporter.export(BATCH)

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]
    assert not any(record.exc_info for record in caplog.records)


def test_shutdown_reaches_the_exporter_once():
    """The SDK's exporters warn about a second shutdown; afterwards spans are refused and counted."""
    inner = Scripted(OK)
    exporter = CountingExporter(inner)

    exporter.shutdown()
    exporter.shutdown()

    assert exporter.export(BATCH) is FAILED
    assert (inner.shutdowns, exporter.failed) == (1, 2)


def test_flush_of_an_exporter_that_says_nothing_succeeded():
    """Only False is a failed flush."""
    assert CountingExporter(Scripted()).force_flush() is True
