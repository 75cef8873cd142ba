# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import logging
import os
import resource

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from spans_support import exit_code, fork, kernel_span

from ebpftrace.errors import ConfigError
from ebpftrace.spans.otlp_json import FileSpanExporter
from ebpftrace.spans.resource import kernel_resource
from ebpftrace.spans.sdk import SpanBuilder

BUILD = SpanBuilder(kernel_resource())


def batch(*numbers):
    return [BUILD(kernel_span(number)) for number in numbers]


def names(path):
    """Names of the spans in every line; empty lines are none."""
    return [
        [span["name"] for span in json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]]
        for line in path.read_text().splitlines()
        if line
    ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.jsonl"


@pytest.fixture
def exporter(path):
    exporter = FileSpanExporter(path)
    yield exporter
    exporter.shutdown()


def test_batch_is_one_line_at_the_end_of_the_file(path):
    """What was in the file stays; each batch adds a line."""
    path.write_text("{}\n")
    exporter = FileSpanExporter(path)

    results = [exporter.export(batch(1, 2)), exporter.export(batch(3))]
    exporter.shutdown()

    assert results == [SpanExportResult.SUCCESS] * 2
    assert path.read_text().startswith("{}\n{")
    assert path.read_text().count("\n") == 3
    assert exporter.exported == 3


def test_it_is_an_exporter_for_the_sdk(path):
    """A TracerProvider writes through it, and the end of the provider is the end of the file."""
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = FileSpanExporter(path)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    provider.get_tracer("app").start_span("request").end()

    assert provider.force_flush()
    provider.shutdown()

    assert names(path) == [["request"]]
    assert exporter._fd == -1


def test_no_spans_are_no_line(exporter, path):
    """An empty batch leaves no mark."""
    assert exporter.export([]) is SpanExportResult.SUCCESS
    assert path.read_text() == ""


def test_processes_share_a_file(exporter, path):
    """Forked children and a second opener append whole lines, none over another."""

    def write(own):
        results = {own.export(batch(*range(1, 200))) for _ in range(20)}
        return results == {SpanExportResult.SUCCESS} and own.exported == 199 * 20

    children = [fork(lambda: write(exporter)), fork(lambda: write(exporter))]
    children += [fork(lambda: write(FileSpanExporter(path))), fork(lambda: write(FileSpanExporter(path)))]

    assert [exit_code(child) for child in children] == [0, 0, 0, 0]
    assert [len(line) for line in names(path)] == [199] * 80
    assert exporter.exported == 0


def test_fork_while_another_thread_exports_does_not_hang_the_child(exporter, path):
    """The child does not inherit a lock that nobody in it will release."""
    with exporter._lock:
        child = fork(lambda: exporter.export(batch(1)) is SpanExportResult.SUCCESS)

    assert exit_code(child) == 0
    assert names(path) == [["span 1"]]


def test_full_disk_is_counted_and_logged_once(caplog):
    """ENOSPC costs the spans, not the application, and not the log."""
    exporter = FileSpanExporter("/dev/full")

    with caplog.at_level(logging.WARNING):
        results = [exporter.export(batch(1, 2)) for _ in range(5)]
    exporter.shutdown()

    assert set(results) == {SpanExportResult.FAILURE}
    assert (exporter.exported, exporter.failed) == (0, 10)
    assert [os.strerror(errno.ENOSPC) in record.getMessage() for record in caplog.records] == [True]


def test_line_cut_short_does_not_spoil_the_next_one(exporter, path):
    """A write that stopped in the middle is a failure, and the next line starts on a line of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        short, refused = exporter.export(batch(1)), exporter.export(batch(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = exporter.export(batch(3))

    torn, whole = path.read_text().splitlines()
    assert (short, refused, after) == (SpanExportResult.FAILURE, SpanExportResult.FAILURE, SpanExportResult.SUCCESS)
    assert len(torn) == 100
    assert json.loads(whole)["resourceSpans"]
    assert (exporter.exported, exporter.failed) == (1, 2)


def test_shutdown_twice_and_export_afterwards(exporter, path):
    """After shutdown spans are refused and counted; a second shutdown does nothing."""
    exporter.shutdown()
    exporter.shutdown()

    assert exporter.export(batch(1)) is SpanExportResult.FAILURE
    assert exporter.failed == 1
    assert exporter.force_flush()
    assert path.read_text() == ""


def test_file_that_cannot_be_opened_says_where_and_why(tmp_path):
    """A wrong path is an error at once, not a loss later."""
    with pytest.raises(ConfigError, match=r"missing/trace\.jsonl: No such file or directory; give a file"):
        FileSpanExporter(tmp_path / "missing" / "trace.jsonl")
