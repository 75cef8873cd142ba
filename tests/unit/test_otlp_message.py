# SPDX-License-Identifier: Apache-2.0
"""The frame of a request, and what answers say, against the messages of opentelemetry-proto."""

from __future__ import annotations

import time
from email.utils import formatdate
from unittest import mock

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import DebugInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as sdk_encode
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from spans_support import kernel_span

from ebpftrace._version import version
from ebpftrace.spans import protobuf, sdk
from ebpftrace.spans.otlp import OtlpSettings, OtlpSink, message, retry
from ebpftrace.spans.otlp.sink import SCOPE_NAME
from ebpftrace.spans.otlp.transport import Answer

ATTRIBUTES = {"service.name": "é", "flag": True, "count": -1, "load": 0.5, "names": ("a", "b"), "numbers": (1, 2)}


def packed(detail):
    """A detail of a status."""
    wrapped = Any()
    wrapped.Pack(detail)
    return wrapped


def test_request_equals_the_exporters():
    """A request has resource, scope and spans where the SDK's own exporter writes them."""
    spans = [kernel_span(number) for number in (1, 2, 3)]
    scope = message.scope_message(SCOPE_NAME, version)
    resource = message.resource_message(ATTRIBUTES)
    payloads = [protobuf.encode_spans(spans[:2]), protobuf.encode_spans(spans[2:])]
    ours = ExportTraceServiceRequest.FromString(message.request_message(scope, [(resource, payloads)]))
    build = sdk.SpanBuilder(Resource(ATTRIBUTES))

    assert sdk_encode([build(span) for span in spans]) == ours


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.text())
def test_partial_success(rejected, text):
    """The count of rejected spans, never below 0, and the remark are read from a response."""
    partial = ExportTracePartialSuccess(rejected_spans=rejected, error_message=text)
    response = ExportTraceServiceResponse(partial_success=partial).SerializeToString()

    assert (max(0, rejected), text) == message.partial_success(response)


def test_full_success():
    """An empty response is a full success."""
    assert (0, "") == message.partial_success(b"")


@given(st.integers(0, 1 << 40), st.integers(0, 999_999_999), st.text())
def test_retry_info(seconds, nanos, text):
    """The delay is found among a status's details, and its message is read."""
    info = RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos))
    status = Status(code=14, message=text, details=[packed(DebugInfo(detail="x")), packed(info)]).SerializeToString()

    assert seconds + nanos / 1e9 == message.retry_delay_s(status)
    assert text == message.status_text(status)


def test_no_retry_info():
    """A status without it asks for no delay; one with an empty delay asks for 0."""
    assert message.retry_delay_s(Status(code=8, details=[packed(DebugInfo())]).SerializeToString()) is None
    assert 0 == message.retry_delay_s(Status(code=8, details=[packed(RetryInfo())]).SerializeToString())


@given(st.binary(max_size=60))
def test_any_answer(data):
    """Bytes that are no message are a ValueError and nothing else."""
    for read in (message.partial_success, message.status_text, message.retry_delay_s):
        try:
            read(data)
        except ValueError:
            continue


def test_retry_after():
    """Retry-After is seconds or a date; what is neither, and what is past, does not count."""
    in_a_minute = formatdate(time.time() + 60, usegmt=True)

    assert 7 == retry.retry_after_s(" 7 ")
    assert pytest.approx(60, abs=2) == retry.retry_after_s(in_a_minute)
    assert 0 == retry.retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT")
    assert retry.MAX_WAIT_S == retry.retry_after_s("86400")
    assert [None] * 4 == [retry.retry_after_s(text) for text in (None, "", "soon", "-1")]


def test_backoff():
    """Waits double up to the longest one, each with a random share of up to a half taken off."""
    backoff = retry.Backoff(1.0, 4.0)
    waits = [backoff.next_s() for _ in range(5)]
    backoff.reset()

    for wait, longest in zip([*waits, backoff.next_s()], [1, 2, 4, 4, 4, 1], strict=True):
        assert longest / 2 <= wait <= longest
    assert 5 == len(set(waits))


def test_a_service_of_its_own():
    """On both ways out, spans of another service have its name and nothing else of ours that is `service.*`."""
    resource = {"service.name": "kernel", "service.version": "1", "host.name": "here"}
    transport = mock.Mock(prepare=lambda request: request, send=mock.Mock(return_value=Answer("accepted")))
    sink = OtlpSink(OtlpSettings(delay_s=0), resource, transport=transport)
    spans = [kernel_span(1, service="db")]
    sink.emit(spans)
    sink.close()
    ours = ExportTraceServiceRequest.FromString(transport.send.call_args.args[0])
    build = sdk.SpanBuilder(Resource(resource))

    assert sdk_encode([build(span) for span in spans]) == ours
    assert ["host.name", "service.name"] == [pair.key for pair in ours.resource_spans[0].resource.attributes]


def test_names_agree():
    """The scope is called the same on both ways out."""
    assert sdk.SCOPE_NAME == SCOPE_NAME
