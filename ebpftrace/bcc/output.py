# SPDX-License-Identifier: Apache-2.0
"""Where the spans of BCC programs go: into the application's provider, or out by the OTEL_* variables."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from ebpftrace.errors import UnsupportedError
from ebpftrace.spans.otlp.sink import OtlpSink
from ebpftrace.spans.pipeline import NativePipeline, Pipeline, SdkPipeline
from ebpftrace.spans.resource import DEFAULT_SERVICE_NAME, kernel_resource
from ebpftrace.spans.sdk import SdkSink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.spans.model import KernelSpan
    from ebpftrace.spans.sink import Sink

Stamp = Literal["start", "end"]
"""What the time of a record is: many BCC tools submit when something has ended, with the time of that."""

_SERVICE_NAME = "OTEL_SERVICE_NAME"


class Output:
    """One way out, for all buffers of a reader.

    Args:
        to: a TracerProvider, or a sink; None = the global TracerProvider when that is the SDK's, else exporters by
            the OTEL_* variables.
        service_name: `service.name` of the spans.
        output: a file that gets the spans as OTLP JSON lines; "" = none. Not with `to`.

    Raises:
        ConfigError: an OTEL_* variable is wrong.
        UnsupportedError: the provider takes no spans, or the package of the exporter is not installed.
    """

    def __init__(self, to: Any, *, service_name: str, output: str = "") -> None:
        name = service_name or os.environ.get(_SERVICE_NAME, "").strip() or DEFAULT_SERVICE_NAME
        self._owned = False
        self.sink: Any
        if hasattr(to, "emit"):
            self.sink = to
        elif to is not None or (isinstance(trace._TRACER_PROVIDER, TracerProvider) and not output):
            self.sink = SdkSink(to or trace._TRACER_PROVIDER, service_name=name)
        else:
            self.sink, self._owned = _by_environment(name, output), True

    def pipeline(self, rings: Mapping[int, Sequence[RecordLayout]], stamp: Stamp) -> Pipeline:
        """Return what makes spans of records and hands them to the sink."""
        if stamp == "end":
            return SdkPipeline(rings, _shifting(self.sink))
        if isinstance(self.sink, OtlpSink):
            return NativePipeline(rings, self.sink.put)
        return SdkPipeline(rings, self.sink.emit)

    def stats(self) -> dict[str, int]:
        """Return the sink's counters."""
        stats = self.sink.stats
        return {name: getattr(stats, name) for name in ("emitted", "exported", "failed", "dropped")}

    def flush(self, timeout_s: float) -> bool:
        """Export what is queued, where the exporter is our own; a provider's is flushed by its owner."""
        return bool(self.sink.flush(timeout_s)) if self._owned else True

    def close(self) -> None:
        """Close what is our own; idempotent."""
        if self._owned:
            self.sink.close()


def _by_environment(service_name: str, output: str) -> Sink:
    from ebpftrace.spans.otlp.choose import make_exporter
    from ebpftrace.spans.otlp_json import FileSpanExporter

    files = [FileSpanExporter(output)] if output else []
    environ = dict(os.environ)
    if output:  # a file was asked for, nothing else unless that is, too
        environ.setdefault("OTEL_TRACES_EXPORTER", "none")
    resource = kernel_resource(service_name)
    try:
        return make_exporter(environ, resource, more=files)
    except UnsupportedError:  # the native sender's package is not there; the SDK's exporter may be
        return make_exporter(environ, resource, encoder="sdk", more=files)


def _shifting(sink: Sink) -> Callable[[list[KernelSpan]], None]:
    def emit(spans: list[KernelSpan]) -> None:
        sink.emit([ended_at_its_time(span) for span in spans])

    return emit


def ended_at_its_time(span: KernelSpan) -> KernelSpan:
    """Return a span that was stamped when it ended, its duration earlier."""
    duration_ns = span.end_ns - span.start_ns
    return msgspec.structs.replace(span, start_ns=max(span.start_ns - duration_ns, 0), end_ns=span.start_ns)
