# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from bcc_support import Kept
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from spans_support import kernel_span

from ebpftrace.bcc.output import Output, ended_at_its_time
from ebpftrace.errors import ConfigError, UnsupportedError


def test_global_provider(monkeypatch):
    """Spans go into the application's provider, which is not closed by us."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    output = Output(None, service_name="disk")
    output.sink.emit([kernel_span(1)])
    output.close()
    output.sink.emit([kernel_span(2)])

    assert ["span 1", "span 2"] == [span.name for span in exporter.get_finished_spans()]
    assert "disk" == exporter.get_finished_spans()[0].resource.attributes["service.name"]
    assert 2 == output.stats()["exported"]


def test_other_provider():
    """A provider or a sink that is given goes first; what is neither is refused."""
    sink = Kept()

    assert sink is Output(sink, service_name="").sink
    with pytest.raises(UnsupportedError, match="TracerProvider that takes kernel spans"):
        Output(object(), service_name="")


@pytest.mark.parametrize("service", ["", "given"])
def test_environment(monkeypatch, service):
    """Without a provider, the OTEL_* variables say where to; a wrong one is an error."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "environment")
    output = Output(None, service_name=service)

    assert (service or "environment") == output.sink._resource["service.name"]
    output.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense")
    with pytest.raises(ConfigError, match="nonsense"):
        Output(None, service_name="")


@given(st.integers(0, 1 << 63), st.integers(0, 1 << 63))
def test_ended_at_its_time(time_ns, duration_ns):
    """A span that was stamped at its end ends at its stamp, and lasts as long as before unless it began before 1970."""
    span = ended_at_its_time(kernel_span(start_ns=time_ns, end_ns=time_ns + duration_ns))

    assert time_ns == span.end_ns
    assert max(time_ns - duration_ns, 0) == span.start_ns
