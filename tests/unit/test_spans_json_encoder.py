# SPDX-License-Identifier: Apache-2.0
"""The JSON encoder against the SDK's protobuf encoder, field by field."""

from __future__ import annotations

import base64
import json
import math

from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from ebpftrace.spans.json_encoder import encode

_IDS = {"traceId", "spanId", "parentSpanId"}


def protobuf_says(spans):
    """Encode with the SDK's OTLP encoder and write that as OTLP/JSON: protobuf's JSON, but ids in hex."""
    message = encode_spans(spans)
    return _hex_ids(json_format.MessageToDict(message, use_integers_for_enums=True))


def _hex_ids(value):
    if isinstance(value, list):
        return [_hex_ids(item) for item in value]
    if isinstance(value, dict):
        return {
            key: base64.b64decode(item).hex() if key in _IDS and isinstance(item, str) else _hex_ids(item)
            for key, item in value.items()
        }
    return value


def without_link_tracestate(request):
    """Leave out what we write and the protobuf encoder forgets."""
    for resource in request.get("resourceSpans", []):
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for link in span.get("links", []):
                    link.pop("traceState", None)
    return request


# Strategies: everything the SDK lets a user put into a span.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
int64 = st.integers(-(2**63), 2**63 - 1)
times = st.none() | st.integers(0, 2**63 - 1)
scalars = st.none() | st.booleans() | int64 | st.floats() | text | st.binary(max_size=9)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(text, inner, max_size=4)
    ),
    max_leaves=8,
)
attributes = st.none() | st.dictionaries(text.filter(bool), values, max_size=5)
states = st.sampled_from([None, TraceState(), TraceState([("a", "1"), ("b", "x=y")])])
contexts = st.builds(
    SpanContext,
    st.integers(0, 2**128 - 1),
    st.integers(0, 2**64 - 1),
    st.booleans(),
    st.sampled_from([TraceFlags(0), TraceFlags(1), TraceFlags(3)]),
    states,
)
statuses = st.builds(Status, st.sampled_from(StatusCode)) | st.builds(
    Status, st.just(StatusCode.ERROR), st.none() | text
)
resources = st.builds(Resource, st.dictionaries(text.filter(bool), values, max_size=3), st.none() | text)
scopes = st.none() | st.builds(InstrumentationScope, text, st.none() | text, st.none() | text, attributes)
spans = st.builds(
    ReadableSpan,
    text,
    contexts,
    st.none() | contexts,
    resources,
    attributes,
    st.lists(st.builds(Event, text, attributes, st.integers(0, 2**63 - 1)), max_size=3),
    st.lists(st.builds(Link, contexts, attributes), max_size=3),
    st.sampled_from(SpanKind),
    status=statuses,
    start_time=times,
    end_time=times,
    instrumentation_scope=scopes,
)


@settings(deadline=None, max_examples=200)
@given(st.lists(spans, max_size=5))
def test_json_has_every_field_of_the_protobuf(batch):
    """For any spans, the line is what the SDK's protobuf encoder sends, as JSON."""
    ours = without_link_tracestate(json.loads(encode(batch)))

    assert ours == protobuf_says(batch)


@settings(deadline=None, max_examples=50)
@given(st.lists(spans, max_size=3))
def test_a_protobuf_json_parser_reads_it_back(batch):
    """A collector that parses protobuf's JSON (ids as base64) gets the very message the SDK would have sent."""
    request = without_link_tracestate(json.loads(encode(batch)))

    parsed = json_format.ParseDict(_base64_ids(request), ExportTraceServiceRequest())

    # As text, because NaN is not equal to itself.
    assert str(parsed) == str(encode_spans(batch))


def _base64_ids(value):
    if isinstance(value, list):
        return [_base64_ids(item) for item in value]
    if isinstance(value, dict):
        return {
            key: base64.b64encode(bytes.fromhex(item)).decode()
            if key in _IDS and isinstance(item, str)
            else _base64_ids(item)
            for key, item in value.items()
        }
    return value


def real_span(**arguments):
    """Record one span with a real tracer whose limits drop something of everything."""
    memory = InMemorySpanExporter()
    limits = SpanLimits(max_span_attributes=2, max_events=1, max_links=1, max_event_attributes=1, max_link_attributes=1)
    provider = TracerProvider(span_limits=limits, resource=Resource({"service.name": "s"}, "http://schema/r"))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("lib", "1.2", "http://schema/s", {"scope": True})
    context = SpanContext(1, 2, is_remote=True, trace_state=TraceState([("k", "v")]))
    with tracer.start_as_current_span("x", links=[Link(context, {"a": 1, "b": 2}), Link(context)], **arguments) as span:
        span.set_attributes({"a": 1, "b": 2, "c": 3})
        span.add_event("e1", {"a": 1, "b": 2})
        span.add_event("e2", {"a": 1, "b": 2})
    (finished,) = memory.get_finished_spans()
    provider.shutdown()
    return finished


def test_real_span_with_dropped_parts():
    """What the SDK's limits dropped is in the counts of span, event and link."""
    span = real_span(kind=SpanKind.SERVER)

    line = json.loads(encode([span]))

    encoded = line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert encoded["droppedAttributesCount"] == 1
    assert encoded["droppedEventsCount"] == 1
    assert encoded["droppedLinksCount"] == 1
    assert encoded["events"][0]["droppedAttributesCount"] == 1
    assert without_link_tracestate(line) == protobuf_says([span])


def test_link_keeps_its_tracestate():
    """The protobuf encoder of the SDK forgets it; the specification has it."""
    memory_link = Link(SpanContext(1, 2, is_remote=True, trace_state=TraceState([("k", "v")])))
    span = ReadableSpan("x", SpanContext(3, 4, is_remote=False), resource=Resource({}), links=[memory_link])

    encoded = json.loads(encode([span]))["resourceSpans"][0]["scopeSpans"][0]["spans"][0]

    assert encoded["links"][0]["traceState"] == "k=v"


def plain(name="x", **fields):
    return ReadableSpan(
        name, SpanContext(3, 4, is_remote=False), resource=fields.pop("resource", Resource({})), **fields
    )


def test_spans_are_grouped_by_equal_resource_and_scope():
    """Equal resources and scopes make one group, even when they are different objects."""
    batch = [
        plain(str(number), resource=Resource({"r": number % 2}), instrumentation_scope=InstrumentationScope("lib"))
        for number in range(4)
    ]

    groups = json.loads(encode(batch))["resourceSpans"]

    names = [[span["name"] for scope in group["scopeSpans"] for span in scope["spans"]] for group in groups]
    assert names == [["0", "2"], ["1", "3"]]


def test_line_is_compact_and_has_no_newline():
    """A batch is one line of a file, whatever the strings in it hold."""
    line = encode([plain("two\nlines", attributes={"k": "a\r\nb\u2028"})])

    assert b"\n" not in line
    assert b": " not in line


def test_non_finite_numbers_are_protobufs_words():
    """JSON has no NaN; protobuf's JSON spells it."""
    line = encode([plain(attributes={"v": (math.nan, math.inf, -math.inf)})])

    assert b'["NaN"' not in line
    assert b'{"doubleValue":"NaN"},{"doubleValue":"Infinity"},{"doubleValue":"-Infinity"}' in line


def test_what_otlp_cannot_hold_becomes_text():
    """An integer beyond int64, a lone surrogate and a foreign type do not cost the batch, nor the value."""
    line = json.loads(encode([plain("\udcff", attributes={"big": 2**63, "raw": "a\udc80", "odd": complex(1, 2)})]))

    span = line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert span["name"] == "?"
    assert [pair["value"]["stringValue"] for pair in span["attributes"]] == [str(2**63), "a?", "(1+2j)"]


def test_nothing_is_an_empty_request():
    """No spans are the default value of the message."""
    assert encode([]) == b"{}"
