# SPDX-License-Identifier: Apache-2.0
"""The sink of the native path, and OTLP's JSON, against an OpenTelemetry Collector and Jaeger."""

from __future__ import annotations

import dataclasses
import json
import urllib.request

import pytest
from backends import Jaeger, Otelcol, by_id, expected, in_any_order, parsed, running
from opentelemetry.sdk.resources import Resource
from otlp_servers import wait_until

from ebpftrace._version import version
from ebpftrace.spans import json_encoder
from ebpftrace.spans.model import KernelSpan
from ebpftrace.spans.otlp import OtlpSink, read_settings
from ebpftrace.spans.sdk import SpanBuilder

RESOURCE = {"service.name": "kernel", "service.version": "1", "host.name": "höst", "os.type": "linux"}
SCOPE = ("ebpftrace.kernel", version)
START = 1_700_000_000_123_456_789
TRACE = 0x0123456789ABCDEF_FEDCBA9876543210

WHOLE = {
    "trace_id": TRACE,
    "span_id": 0x00000000000000FF,
    "parent_span_id": 0x8000000000000001,
    "name": "wörk",
    "start_ns": START,
    "end_ns": START + 1,
    "program": "given",
    "attributes": {
        "ebpftrace.program": "given",
        "least": -(1 << 63),
        "most": (1 << 63) - 1,
        "true": True,
        "false": False,
        "one": 1,
        "zero": 0,
        "ratio": 0.1,
        "round": 2.0,
        "text": "ünïcode\n\U0001f600",
        "empty": "",
        "texts": ("a", "", "ß"),
        "numbers": (-1, 0, 1 << 40),
    },
    "links": ((TRACE, 1), (1 << 127 | 7, 1 << 63)),
    "events": (("opened", START), ("closed", START + 1)),
}
KINDS = ("internal", "server", "client", "producer", "consumer")
MOMENT = KernelSpan(**{**WHOLE, "span_id": 99, "end_ns": START})
STATUSES = ({}, {"status": "ok"}, {"status": "error"}, {"error": ""}, {"error": "no röom"})


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def otelcol(tmp_path):
    with running(Otelcol, tmp_path) as collector:
        yield collector


@pytest.fixture
def jaeger(tmp_path):
    with running(Jaeger, tmp_path) as backend:
        yield backend


def all_spans():
    """A trace with everything that a span can have: kinds, statuses, services; and its root, which has next to none."""
    changes = [{"kind": kind} for kind in KINDS] + list(STATUSES) + [{"service": "db"}]
    whole = [KernelSpan(**{**WHOLE, "span_id": 1 + number, **change}) for number, change in enumerate(changes)]
    root = {"span_id": WHOLE["parent_span_id"], "parent_span_id": 0, "end_ns": START + 2, "program": "root"}
    little = {"attributes": {"ebpftrace.program": "root"}, "links": (), "events": ()}
    return [*whole, KernelSpan(**{**WHOLE, **root, **little})]


def send(backend, spans, protocol, **variables):
    """Send by a sink of the native path."""
    sink = OtlpSink(read_settings({**backend.env(protocol), **variables}), RESOURCE)
    sink.emit(spans)
    sink.close(20)
    return sink.stats


def wanted(spans):
    return by_id(expected(span, RESOURCE, SCOPE) for span in spans)


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_collector(otelcol, protocol, compression):
    """What the Collector writes into its file is what was sent, in every field and to the nanosecond."""
    spans = [*all_spans(), MOMENT]

    stats = send(otelcol, spans, protocol, OTEL_EXPORTER_OTLP_COMPRESSION=compression)
    otelcol.stop()

    assert (len(spans), 0, 0) == (stats.exported, stats.failed, stats.dropped)
    assert wanted(spans) == by_id(otelcol.spans())


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_jaeger(jaeger, protocol):
    """What Jaeger returns for a trace is what was sent; it knows the services and the names."""
    spans = all_spans()

    stats = send(jaeger, spans, protocol)
    wait_until(lambda: len(jaeger.trace(f"{TRACE:032x}")) >= len(spans))

    assert len(spans) == stats.exported
    assert in_any_order(wanted(spans)) == in_any_order(by_id(jaeger.trace(f"{TRACE:032x}")))
    assert {"kernel", "db"} == jaeger.services()
    assert {"wörk"} == jaeger.operations("db")


def test_jaeger_moment(jaeger):
    """A span of no duration gets a nanosecond and a warning from Jaeger; the rest of it is as it was."""
    send(jaeger, [MOMENT], "grpc")
    wait_until(lambda: jaeger.trace(f"{TRACE:032x}"))
    [found] = in_any_order(jaeger.trace(f"{TRACE:032x}"))
    _, warnings = found["attributes"].pop("@jaeger@warnings")
    [sent] = in_any_order(wanted([MOMENT]))

    assert {**sent, "end": START + 1} == found
    assert any("Negative duration" in text for _, text in warnings)


def test_many(otelcol):
    """Ten thousand spans, in many requests, arrive once each."""
    few = {"links": (), "events": (), "attributes": {"ebpftrace.program": "given"}}
    spans = [
        KernelSpan(**{**WHOLE, **few, "trace_id": TRACE + number % 97, "span_id": number})
        for number in range(1, 10_001)
    ]
    settings = dataclasses.replace(read_settings(otelcol.env("grpc")), max_request_bytes=64 << 10)
    sink = OtlpSink(settings, RESOURCE)
    for start in range(0, len(spans), 500):
        sink.emit(spans[start : start + 500])
    sink.close(20)
    otelcol.stop()

    assert sink.stats.requests > 10
    assert [span.span_id for span in spans] == sorted(int(span["id"], 16) for span in otelcol.spans())


def test_json(otelcol):
    """The OTLP JSON that `--output` writes is taken by the Collector, and means the same to it."""
    spans = all_spans()
    build = SpanBuilder(Resource(RESOURCE))
    body = json_encoder.encode([build(span) for span in spans])
    request = urllib.request.Request(
        f"http://127.0.0.1:{otelcol.http}/v1/traces", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer) in ({}, {"partialSuccess": {}})
    otelcol.stop()

    assert wanted(spans) == by_id(parsed(json.loads(body)))
    assert wanted(spans) == by_id(otelcol.spans())
