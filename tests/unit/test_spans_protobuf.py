# SPDX-License-Identifier: Apache-2.0
"""Our protobuf against opentelemetry-proto and the SDK's encoder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as sdk_encode
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.resources import Resource
from spans_support import kernel_span

from ebpftrace._version import version
from ebpftrace.spans import protobuf
from ebpftrace.spans.model import KernelSpan
from ebpftrace.spans.otlp import message
from ebpftrace.spans.sdk import SCOPE_NAME, SpanBuilder

RESOURCE = {"service.name": "kernel", "host.name": "ünder", "cpus": 2}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
uint64 = st.integers(0, 2**64 - 1)
values = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    text,
    st.lists(text, max_size=3).map(tuple),
    st.lists(st.integers(-(2**63), 2**64 - 1), max_size=3).map(tuple),
)
trace_ids, span_ids = st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)
spans = st.builds(
    KernelSpan,
    trace_id=trace_ids,
    span_id=span_ids,
    parent_span_id=uint64,
    name=text,
    start_ns=uint64,
    end_ns=uint64,
    attributes=st.dictionaries(text, values, max_size=5),
    program=text,
    error=st.none() | text,
    status=st.sampled_from(sorted(protobuf.STATUSES)),
    kind=st.sampled_from(sorted(protobuf.KINDS)),
    service=st.just(""),
    links=st.lists(st.tuples(trace_ids, span_ids), max_size=3).map(tuple),
    events=st.lists(st.tuples(text, uint64), max_size=3).map(tuple),
)


@given(st.lists(spans, max_size=4))
def test_as_the_sdk(made):
    """A request of ours says in every field what the SDK's encoder says of the same spans."""
    payload = protobuf.encode_spans(made)
    scope, resource = message.scope_message(SCOPE_NAME, version), message.resource_message(RESOURCE)
    ours = message.request_message(scope, [(resource, [payload])])

    build = SpanBuilder(Resource(RESOURCE))
    theirs = sdk_encode([build(span) for span in made])
    if made:  # for no spans the SDK writes no resource either
        assert theirs == ExportTraceServiceRequest.FromString(ours)
    assert b"" != ours


def test_joined():
    """Payloads can be put behind each other."""
    payload = protobuf.encode_spans([kernel_span(1)]) + protobuf.encode_spans([kernel_span(2), kernel_span(3)])

    assert ["span 1", "span 2", "span 3"] == [span.name for span in ScopeSpans.FromString(payload).spans]


def test_surrogates():
    """Text that UTF-8 has no bytes for does not spoil the request."""
    payload = protobuf.encode_spans([kernel_span(name="a\udcffb", attributes={"\udc80": "\ud800"})])

    [span] = ScopeSpans.FromString(payload).spans
    assert "a?b" == span.name
    assert {"?": "?", "ebpftrace.program": "sched"} == {pair.key: pair.value.string_value for pair in span.attributes}


@pytest.mark.parametrize(
    ("value", "field", "expected"),
    [
        (None, None, None),
        (b"\xff", "bytes_value", b"\xff"),
        (2**63, "string_value", "9223372036854775808"),
        (-(2**63) - 1, "string_value", "-9223372036854775809"),
        ({1}, "string_value", "{1}"),
    ],
)
def test_other_values(value, field, expected):
    """What OTLP has no type for arrives as its text; nothing as an empty value."""
    [span] = ScopeSpans.FromString(protobuf.encode_spans([kernel_span(attributes={"key": value})])).spans
    found = {pair.key: pair.value for pair in span.attributes}["key"]

    assert field == found.WhichOneof("value")
    assert field is None or expected == getattr(found, field)


@given(uint64)
def test_varint(number):
    """A varint is as short as it can be, and reads back."""
    encoded = protobuf.varint(number)

    assert max(1, -(-number.bit_length() // 7)) == len(encoded)
    assert number == sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded))
