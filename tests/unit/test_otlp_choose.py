# SPDX-License-Identifier: Apache-2.0
"""Which way spans leave, by the variables."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.resources import Resource
from spans_support import kernel_span

from ebpftrace.errors import ConfigError
from ebpftrace.spans.export import ExporterSink
from ebpftrace.spans.otlp import OtlpSink
from ebpftrace.spans.otlp.choose import make_exporter
from ebpftrace.spans.sink import NullSink

RESOURCE = Resource({"service.name": "kernel"})


@pytest.fixture
def make(monkeypatch):
    """Sinks by variables, which are the process's as well; closed in the end."""
    sinks = []

    def make(encoder="auto", **environ):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        sinks.append(make_exporter(environ, RESOURCE, encoder=encoder))
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.close()


@pytest.mark.parametrize("environ", [{}, {"OTEL_TRACES_EXPORTER": " "}, {"OTEL_TRACES_EXPORTER": "otlp,none"}])
@pytest.mark.parametrize("encoder", ["auto", "native"])
def test_otlp_is_native(make, environ, encoder):
    """`otlp`, and nothing said, is the native sink with the settings of the variables."""
    sink = make(encoder, **environ, OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:1")

    assert isinstance(sink, OtlpSink)
    assert "http://collector:1/v1/traces" == sink.settings.endpoint
    assert {"service.name": "kernel"} == sink._resource


def test_the_sdk_when_asked_for(make):
    """The SDK's exporter does it when its encoder is asked for."""
    assert isinstance(make("sdk", OTEL_TRACES_EXPORTER="otlp"), ExporterSink)


def test_console(make):
    """`console` is the SDK's exporter."""
    sink = make(OTEL_TRACES_EXPORTER="console")
    sink.emit([kernel_span(1)])
    assert sink.flush(5)

    assert (["ConsoleSpanExporter"], 1) == ([exporter._name for exporter in sink._exporters], sink.stats.exported)


def test_several(make):
    """Several exporters go through the SDK, each of them."""
    sink = make(OTEL_TRACES_EXPORTER="otlp,console")

    assert ["OTLPSpanExporter", "ConsoleSpanExporter"] == [exporter._name for exporter in sink._exporters]


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"OTEL_TRACES_EXPORTER": "none"}, "OTEL_TRACES_EXPORTER is none"),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "console"}, "OTEL_SDK_DISABLED is true"),
    ],
)
def test_nowhere(make, environ, reason):
    """`none`, and a disabled SDK, count spans as dropped and say why."""
    sink = make(**environ)
    sink.emit([kernel_span(1)])

    assert isinstance(sink, NullSink)
    assert (reason, 1) == (sink.reason, sink.stats.dropped)


@pytest.mark.parametrize(
    ("encoder", "environ", "expected"),
    [
        ("auto", {"OTEL_TRACES_EXPORTER": "otpl"}, "names 'otpl', which is not installed"),
        ("native", {"OTEL_TRACES_EXPORTER": "console"}, "the native encoder speaks otlp only"),
        ("auto", {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"}, "OTEL_EXPORTER_OTLP_ENDPOINT: 'collector' does not"),
        ("sdk", {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"}, "OTEL_EXPORTER_OTLP_ENDPOINT: 'collector' does not"),
        (
            "sdk",
            {"OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "20"},
            "OTEL_BSP_\\* variables contradict each other",
        ),
    ],
)
def test_mistakes(make, encoder, environ, expected):
    """A wrong variable is an error, not a warning: who starts a daemon shall see it."""
    with pytest.raises(ConfigError, match=expected):
        make(encoder, **environ)
