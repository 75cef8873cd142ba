# SPDX-License-Identifier: Apache-2.0
"""Exporting by the OTEL_* variables: real exporters and receiver, own processes for global state."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from spans_support import TRACE_ID, kernel_span, receiver

from ebpftrace.spans import exporters
from ebpftrace.spans.export import ExporterSink, autoexport_sink
from ebpftrace.spans.sink import NullSink, SinkStats

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_otel_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def closed_port():
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def test_spans_reach_the_collector_of_the_variables(monkeypatch):
    """With an endpoint set, and nothing else, spans arrive there by OTLP/HTTP with all their fields."""
    with receiver() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        sink = autoexport_sink(service_name="node-kernel")
        sink.emit([kernel_span(number, error="EIO") for number in range(1, 701)])
        flushed = sink.flush(10)
        sink.close()

    span = min(collector.spans, key=lambda span: span.start_time_unix_nano)
    names = {pair.key: pair.value.string_value for pair in collector.resource_spans[0].resource.attributes}
    assert flushed
    assert sink.stats == SinkStats(emitted=700, exported=700)
    assert len(collector.spans) == 700
    assert (span.trace_id, span.span_id) == (TRACE_ID.to_bytes(16, "big"), (1).to_bytes(8, "big"))
    assert (span.name, span.status.message, span.kind) == ("span 1", "EIO", 1)
    assert names["service.name"] == "node-kernel"


def test_batch_size_is_that_of_the_variable(monkeypatch):
    """OTEL_BSP_* shape our batches like the SDK's."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    with receiver() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/v1/traces")
        sink = autoexport_sink()
        sink.emit([kernel_span(number) for number in range(1, 31)])
        sink.close()

    sizes = [len(request.resource_spans[0].scope_spans[0].spans) for request in collector.requests]
    assert sizes == [10, 10, 10]


def test_collector_that_is_down_costs_spans_and_nothing_else(monkeypatch, closed_port, caplog):
    """Nothing raises, the loss is counted, our log has one line and no traceback, and closing is quick."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "50")
    with caplog.at_level(logging.INFO):
        sink = autoexport_sink()
        sink.emit([kernel_span(number) for number in range(1, 151)])
        sink.flush(8)
        started = time.monotonic()
        sink.close()

    assert time.monotonic() - started < 8
    assert sink.stats == SinkStats(emitted=150, failed=150)
    assert len([record for record in caplog.records if record.name == "ebpftrace.spans"]) == 1
    assert not any(record.exc_info for record in caplog.records)


def test_closing_without_time_is_not_another_flush(monkeypatch):
    """Who has waited in vain for a flush does not wait for a second one when it closes."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "25")
        sink = autoexport_sink()
        sink.emit([kernel_span()])
        started = time.monotonic()

        sink.close(0)

    assert time.monotonic() - started < 4


def test_closing_with_a_collector_that_never_answers_is_bounded(monkeypatch):
    """A collector that accepts and says nothing does not hold the process for the SDK's half a minute."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "25")
        monkeypatch.setattr("ebpftrace.spans.export._CLOSE_S", 0.5)
        sink = autoexport_sink()
        sink.emit([kernel_span()])
        started = time.monotonic()

        sink.close()

    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("variable", "value"), [("OTEL_SDK_DISABLED", " True "), ("OTEL_TRACES_EXPORTER", "none")])
def test_disabled_export_is_silent_and_counted(monkeypatch, caplog, variable, value):
    """Who switched exporting off gets no warning, but can see the number of spans."""
    monkeypatch.setenv(variable, value)

    with caplog.at_level(logging.WARNING):
        sink = autoexport_sink()
        sink.emit([kernel_span()])

    assert isinstance(sink, NullSink)
    assert variable in sink.reason
    assert sink.stats == SinkStats(emitted=1, dropped=1)
    # the thread of a sink that a test before closed may still find out that nobody answers
    assert [] == [record for record in caplog.records if record.thread == threading.get_ident()]


def test_missing_exporter_is_one_line_and_counted(monkeypatch, caplog):
    """Without the OTLP package there is one warning with the pip command, and a sink that counts."""
    monkeypatch.setattr(exporters, "entry_points", lambda **_: ())

    with caplog.at_level(logging.WARNING):
        sink = autoexport_sink()
        sink.emit([kernel_span()])

    assert sink.stats == SinkStats(emitted=1, dropped=1)
    assert ["pip install 'ebpftrace[otlp]'" in record.getMessage() for record in caplog.records] == [True]


def test_contradicting_batch_settings_do_not_raise(monkeypatch, caplog):
    """A batch larger than the queue is reported with the variables to mend."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")

    with caplog.at_level(logging.WARNING, logger="ebpftrace.spans"):
        sink = autoexport_sink(exporters=[InMemorySpanExporter()], default="none")

    assert isinstance(sink, NullSink)
    assert "OTEL_BSP_" in caplog.text


def test_further_exporters_get_the_spans_too(monkeypatch, capsys):
    """What the caller passes is used beside what the variables say, and each exporter counts a span."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    memory, other = InMemorySpanExporter(), InMemorySpanExporter()
    sink = autoexport_sink(exporters=[memory, other])

    sink.emit([kernel_span()])
    sink.close()
    sink.close()
    sink.emit([kernel_span()])

    assert isinstance(sink, ExporterSink)
    assert len(memory.get_finished_spans()) == len(other.get_finished_spans()) == 1
    assert sink.stats == SinkStats(emitted=2, exported=2, dropped=1)


def run(code, **variables):
    """Run code in a process of its own: the global provider can be set only once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    path = os.pathsep.join(filter(None, [variables.pop("path", ""), str(ROOT)]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": path} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


CONFIGURE = """
from opentelemetry import trace
from ebpftrace.spans.export import configure_sdk
from ebpftrace.spans.otlp_json import FileSpanExporter
import sys
provider = configure_sdk(exporters=[FileSpanExporter(name) for name in sys.argv[1:]])
assert trace.get_tracer_provider() is provider
with trace.get_tracer("app").start_as_current_span("request"):
    print(type(provider).__name__, trace.get_current_span().is_recording())
provider.shutdown()
"""


def test_program_without_an_sdk_gets_one_that_exports():
    """After configure_sdk the program's own tracers export to the collector of the variables."""
    with receiver() as collector:
        done = run(CONFIGURE, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME="shop")

    names = {pair.key: pair.value.string_value for pair in collector.resource_spans[0].resource.attributes}
    assert done.stdout == "TracerProvider True\n"
    assert [span.name for span in collector.spans] == ["request"]
    assert names["service.name"] == "shop"


def test_sampler_of_the_variables_is_respected():
    """The SDK reads its own variables, such as the sampler."""
    done = run(CONFIGURE, OTEL_TRACES_SAMPLER="always_off", OTEL_TRACES_EXPORTER="none")

    assert done.stdout == "TracerProvider False\n"


def test_disabled_sdk_stays_disabled(tmp_path):
    """OTEL_SDK_DISABLED leaves tracers that record nothing, and no exporter."""
    done = run(CONFIGURE, OTEL_SDK_DISABLED="true")

    assert done.stdout == "TracerProvider False\n"
    assert done.stderr == ""


def test_provider_of_the_program_is_kept(tmp_path):
    """A program that has set a provider keeps it and gets the further exporters."""
    out = tmp_path / "trace.jsonl"
    code = f"""
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from ebpftrace.spans.export import configure_sdk
from ebpftrace.spans.otlp_json import FileSpanExporter
own = TracerProvider()
trace.set_tracer_provider(own)
assert configure_sdk(exporters=[FileSpanExporter({str(out)!r})]) is own
own.get_tracer("app").start_span("request").end()
own.shutdown()
"""
    done = run(code)

    line = json.loads(out.read_text())
    assert line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"] == "request"
    assert done.stderr == ""


def distribution(tmp_path, body):
    """Install a distribution with an OpenTelemetry configurator."""
    (tmp_path / "fake_distro.py").write_text(body)
    info = tmp_path / "fake_distro-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-distro\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[opentelemetry_configurator]\nfake = fake_distro:Configurator\n")
    return str(tmp_path)


def test_installed_distribution_configures(tmp_path):
    """A distribution's configurator is preferred, and exports to the default although no variable names it."""
    path = distribution(
        tmp_path,
        """
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
class Configurator(_OTelSDKConfigurator):
    def _configure(self, **kwargs):
        super()._configure(resource_attributes={"from": "distro"}, **kwargs)
""",
    )
    with receiver() as collector:
        done = run(CONFIGURE, path=path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    names = {pair.key: pair.value.string_value for pair in collector.resource_spans[0].resource.attributes}
    assert done.stderr == ""
    assert names["from"] == "distro"
    assert [span.name for span in collector.spans] == ["request"]


def test_failing_distribution_is_replaced(tmp_path):
    """When the configurator raises, the program still gets a provider, and one line says what happened."""
    path = distribution(
        tmp_path,
        """
class Configurator:
    def configure(self, **kwargs):
        raise RuntimeError("no licence")
""",
    )
    with receiver() as collector:
        done = run(CONFIGURE, path=path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    assert [span.name for span in collector.spans] == ["request"]
    assert done.stderr == "OpenTelemetry configurator 'fake' failed: no licence\n"
