# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import threading
import time

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from spans_support import TRACE_ID, kernel_span

from ebpftrace._version import version
from ebpftrace.errors import UnsupportedError
from ebpftrace.spans.sdk import SdkSink
from ebpftrace.spans.sink import SinkStats


class Gate(SpanExporter):
    """Lets batches through only while it is open."""

    def __init__(self):
        self.open = threading.Event()
        self.names = []

    def export(self, spans):
        """Wait for the gate."""
        self.open.wait(30)
        self.names += [span.name for span in spans]
        return SpanExportResult.SUCCESS

    def shutdown(self):
        """Let everybody go."""
        self.open.set()


@pytest.fixture
def memory():
    return InMemorySpanExporter()


@pytest.fixture
def provider(memory):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    yield provider
    provider.shutdown()


def only_span(memory):
    (span,) = memory.get_finished_spans()
    return span


def test_span_keeps_the_kernels_ids_times_and_attributes(provider, memory):
    """What the kernel recorded arrives unchanged at the application's exporter."""
    SdkSink(provider).emit([kernel_span(5, attributes={"cpu": 3, "comm": "x", "ebpftrace.program": "sched"})])

    span = only_span(memory)
    assert (span.context.trace_id, span.context.span_id) == (TRACE_ID, 5)
    assert span.context.trace_flags.sampled
    assert (span.parent.trace_id, span.parent.span_id, span.parent.is_remote) == (TRACE_ID, 0xABCD, False)
    assert (span.start_time, span.end_time) == (1_700_000_000_000_000_005, 1_700_000_000_000_000_010)
    assert dict(span.attributes) == {"cpu": 3, "comm": "x", "ebpftrace.program": "sched"}
    assert (span.name, span.kind, span.status.status_code) == ("span 5", SpanKind.INTERNAL, StatusCode.UNSET)


def test_kernel_span_joins_the_applications_trace(provider, memory):
    """One exporter receives the application's span and, under it, the kernel's."""
    with provider.get_tracer("app").start_as_current_span("request") as request:
        context = request.get_span_context()
        SdkSink(provider).emit([kernel_span(9, trace_id=context.trace_id, parent_span_id=context.span_id)])

    kernel, app = memory.get_finished_spans()
    assert kernel.context.trace_id == app.context.trace_id
    assert kernel.parent.span_id == app.context.span_id


def test_scope_and_resource_are_the_kernels(provider, memory):
    """The spans are told apart from the application's by scope and service name."""
    SdkSink(provider, service_name="node-kernel").emit([kernel_span()])

    span = only_span(memory)
    assert (span.instrumentation_scope.name, span.instrumentation_scope.version) == ("ebpftrace.kernel", version)
    assert span.resource.attributes["service.name"] == "node-kernel"
    assert span.resource.attributes["os.type"] == "linux"


def test_span_without_a_parent_is_a_root(provider, memory):
    """Parent id 0 means no parent, not a parent with an invalid id."""
    SdkSink(provider).emit([kernel_span(parent_span_id=0)])

    assert only_span(memory).parent is None


def test_error_becomes_the_status(provider, memory):
    """A failed operation has status ERROR with its description."""
    SdkSink(provider).emit([kernel_span(error="ECONNREFUSED")])

    status = only_span(memory).status
    assert (status.status_code, status.description) == (StatusCode.ERROR, "ECONNREFUSED")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("internal", SpanKind.INTERNAL), ("server", SpanKind.SERVER), ("consumer", SpanKind.CONSUMER)],
)
def test_kind(provider, memory, kind, expected):
    """A span's kind is the one its program gave it."""
    SdkSink(provider).emit([kernel_span(kind=kind)])

    assert expected == only_span(memory).kind


@pytest.mark.parametrize(("status", "expected"), [("ok", StatusCode.OK), ("error", StatusCode.ERROR)])
def test_status_without_a_description(provider, memory, status, expected):
    """A status may be known where a description is not."""
    SdkSink(provider).emit([kernel_span(status=status)])

    found = only_span(memory).status
    assert (expected, None) == (found.status_code, found.description)


def test_links_and_events(provider, memory):
    """Links lead to spans of other traces; events have a name and a time."""
    SdkSink(provider).emit([kernel_span(links=((1, 2), (3, 4)), events=(("issued", 5),))])

    span = only_span(memory)
    assert [(1, 2), (3, 4)] == [(link.context.trace_id, link.context.span_id) for link in span.links]
    assert [("issued", 5)] == [(event.name, event.timestamp) for event in span.events]


def test_service_of_a_span(provider, memory):
    """A span's own service is its resource's name; the rest of the resource is the sink's."""
    SdkSink(provider).emit(
        [kernel_span(number, service=service) for number, service in ((1, "db"), (2, ""), (3, "db"))]
    )

    resources = [span.resource for span in memory.get_finished_spans()]
    assert ["db", "kernel", "db"] == [resource.attributes["service.name"] for resource in resources]
    assert resources[0] is resources[2]
    assert resources[0].attributes["host.name"] == resources[1].attributes["host.name"]


def test_many_services(provider, memory):
    """Services that come from records do not pile up resources."""
    sink = SdkSink(provider)
    sink.emit([kernel_span(number, service=f"service {number}") for number in range(1, 1001)])

    assert 1000 == len({span.resource.attributes["service.name"] for span in memory.get_finished_spans()})
    assert len(sink.build._resources) <= 256


def test_program_is_always_an_attribute(provider, memory):
    """A decoder need not repeat the program's name, and the span's own dict stays as it was."""
    span = kernel_span(attributes={"cpu": 1})

    SdkSink(provider).emit([span])

    assert only_span(memory).attributes["ebpftrace.program"] == "sched"
    assert span.attributes == {"cpu": 1}


def test_unsigned_values_beyond_int64_survive_the_otlp_encoder(provider, memory):
    """A u64 that OTLP cannot hold as an integer arrives as text instead of being thrown away by the exporter."""
    SdkSink(provider).emit([kernel_span(attributes={"cookie": 2**64 - 1, "top": 2**63 - 1, "flag": True})])

    encoded = encode_spans([only_span(memory)]).resource_spans[0].scope_spans[0].spans[0]
    values = {pair.key: pair.value for pair in encoded.attributes}
    assert values["cookie"].string_value == "18446744073709551615"
    assert values["top"].int_value == 2**63 - 1
    assert values["flag"].bool_value is True


def test_tuples_with_values_beyond_int64(provider, memory):
    """A number of a tuple that OTLP cannot hold arrives as text, as the native encoder writes it."""
    SdkSink(provider).emit([kernel_span(attributes={"mask": (1, 2**64 - 1), "small": (1, 2)})])

    encoded = encode_spans([only_span(memory)]).resource_spans[0].scope_spans[0].spans[0]
    values = {pair.key: pair.value.array_value.values for pair in encoded.attributes}
    assert [(1, ""), (0, "18446744073709551615")] == [(value.int_value, value.string_value) for value in values["mask"]]
    assert [1, 2] == [value.int_value for value in values["small"]]


def test_span_without_valid_ids_is_dropped_and_counted(provider, memory):
    """No backend accepts a zero id."""
    sink = SdkSink(provider)

    sink.emit([kernel_span(trace_id=0), kernel_span(span_id=0), kernel_span(3)])

    assert [span.name for span in memory.get_finished_spans()] == ["span 3"]
    assert sink.stats == SinkStats(emitted=3, exported=1, dropped=2)


def test_raising_processor_is_counted_and_logged_once(provider, caplog):
    """A broken processor of the application neither stops the reader nor floods the log."""
    provider._active_span_processor.on_end = lambda span: 1 // 0
    sink = SdkSink(provider)

    with caplog.at_level(logging.WARNING, logger="ebpftrace.spans"):
        sink.emit([kernel_span(number) for number in range(1, 6)])

    assert sink.stats == SinkStats(emitted=5, failed=5)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("provider", [trace.ProxyTracerProvider(), trace.NoOpTracerProvider(), None])
def test_provider_of_somebody_else_is_refused_with_advice(provider):
    """Without the SDK there is no processor to feed, and the error says what to pass."""
    with pytest.raises(UnsupportedError, match=r"_active_span_processor.*autoexport_sink"):
        SdkSink(provider)


def test_closed_sink_drops_and_leaves_the_provider_running(provider, memory):
    """close() is not the end of the application's provider."""
    sink = SdkSink(provider)
    sink.close()
    sink.close()

    sink.emit([kernel_span()])
    provider.get_tracer("app").start_span("later").end()

    assert sink.stats == SinkStats(emitted=1, dropped=1)
    assert [span.name for span in memory.get_finished_spans()] == ["later"]


def test_flush_exports_what_the_batch_processor_holds(provider, memory):
    """After flush the spans are out of the process."""
    batched = InMemorySpanExporter()
    provider.add_span_processor(BatchSpanProcessor(batched, schedule_delay_millis=60_000))
    sink = SdkSink(provider)
    sink.emit([kernel_span()])

    assert sink.flush(5)
    assert len(batched.get_finished_spans()) == 1


def test_flush_keeps_its_timeout_although_the_processor_does_not():
    """An exporter that hangs costs the caller no more than it said."""
    provider = TracerProvider(shutdown_on_exit=False)
    gate = Gate()
    provider.add_span_processor(BatchSpanProcessor(gate))
    sink = SdkSink(provider)
    sink.emit([kernel_span()])
    started = time.monotonic()

    flushed = sink.flush(0.1)

    assert not flushed
    assert time.monotonic() - started < 5
    gate.open.set()
    provider.shutdown()


def test_kernel_spans_do_not_push_the_applications_spans_out():
    """With the exporter stuck, kernel spans are dropped and counted; the application's spans all arrive."""
    provider = TracerProvider(shutdown_on_exit=False)
    gate = Gate()
    provider.add_span_processor(BatchSpanProcessor(gate, max_queue_size=400, max_export_batch_size=50))
    sink = SdkSink(provider, patience_s=0.05)
    tracer = provider.get_tracer("app")
    tracer.start_span("app first").end()

    sink.emit([kernel_span(number) for number in range(1, 1001)])
    for _ in range(40):
        tracer.start_span("app later").end()
    gate.open.set()

    assert sink.flush(10)
    stats = sink.stats
    provider.shutdown()
    assert gate.names.count("app first") == 1
    assert gate.names.count("app later") == 40
    assert stats.dropped > 0
    assert stats.emitted == stats.exported + stats.dropped == 1000
    assert len([name for name in gate.names if name.startswith("span ")]) == stats.exported


def test_slow_exporter_slows_the_reader_down_and_loses_nothing():
    """A burst larger than the queue waits for the exporter."""

    class Slow(InMemorySpanExporter):
        def export(self, spans):
            time.sleep(0.005)
            return super().export(spans)

    provider = TracerProvider(shutdown_on_exit=False)
    slow = Slow()
    provider.add_span_processor(BatchSpanProcessor(slow, max_queue_size=200, max_export_batch_size=50))
    sink = SdkSink(provider, patience_s=10)

    sink.emit([kernel_span(number) for number in range(1, 1001)])
    sink.flush(10)

    received = len(slow.get_finished_spans())
    provider.shutdown()
    assert received == 1000
    assert sink.stats == SinkStats(emitted=1000, exported=1000)
