# SPDX-License-Identifier: Apache-2.0
"""The agent's way out: native OTLP, or exporters of the SDK, behind one face."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from ebpftrace.agent.snapshot import ExportSnapshot
from ebpftrace.errors import ConfigError
from ebpftrace.spans.export import ExporterSink, sdk_disabled
from ebpftrace.spans.exporters import exporter_names, find_exporter
from ebpftrace.spans.otlp.choose import make_exporter
from ebpftrace.spans.otlp.settings import read_settings
from ebpftrace.spans.otlp.sink import OtlpSink
from ebpftrace.spans.otlp_json import FileSpanExporter
from ebpftrace.spans.pipeline import NativePipeline, SdkPipeline
from ebpftrace.spans.resource import DEFAULT_SERVICE_NAME, kernel_resource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.spans.model import KernelSpan
    from ebpftrace.spans.otlp.choose import Encoder
    from ebpftrace.spans.otlp.settings import OtlpSettings
    from ebpftrace.spans.pipeline import Pipeline
    from ebpftrace.spans.sink import NullSink

_SERVICE_NAME = "OTEL_SERVICE_NAME"


class Export(Protocol):
    """What the daemon does with spans."""

    def pipeline(self, rings: Mapping[int, Sequence[RecordLayout]]) -> Pipeline:
        """Return what takes the reader's batches."""

    def emit(self, spans: Sequence[KernelSpan]) -> None:
        """Send a few spans of the agent's own."""

    def close(self, timeout_s: float) -> bool:
        """Send what is queued, within the time; False when spans were lost by that."""

    def snapshot(self) -> ExportSnapshot:
        """The counters now."""


class NativeExport:
    """Records become OTLP bytes in C, and those are sent."""

    def __init__(self, sink: OtlpSink) -> None:
        self._sink = sink

    def pipeline(self, rings: Mapping[int, Sequence[RecordLayout]]) -> Pipeline:
        """See `Export`."""
        return NativePipeline(rings, self._sink.put)

    def emit(self, spans: Sequence[KernelSpan]) -> None:
        """See `Export`."""
        self._sink.emit(spans)

    def close(self, timeout_s: float) -> bool:
        """See `Export`."""
        before = self._sink.stats
        self._sink.close(timeout_s)
        after = self._sink.stats
        return (after.dropped, after.failed) == (before.dropped, before.failed)

    def snapshot(self) -> ExportSnapshot:
        """See `Export`."""
        stats = self._sink.stats
        return ExportSnapshot(
            exporter=f"otlp {self._sink.settings.protocol} to {self._sink.settings.endpoint}",
            emitted=stats.emitted,
            exported=stats.exported,
            failed=stats.failed,
            dropped=stats.drops,
            queued_spans=stats.queued_spans,
            queued_bytes=stats.queued_bytes,
            requests=stats.requests,
            retries=stats.retries,
            failing_since=self._sink.failing_since,
            last_error=stats.last_error,
            last_error_at=stats.last_error_at,
        )


class SdkExport:
    """Records become spans in Python, and go to exporters of the SDK."""

    def __init__(self, sink: ExporterSink | NullSink, name: str) -> None:
        self._sink = sink
        self._name = name

    def pipeline(self, rings: Mapping[int, Sequence[RecordLayout]]) -> Pipeline:
        """See `Export`."""
        return SdkPipeline(rings, self._sink.emit)

    def emit(self, spans: Sequence[KernelSpan]) -> None:
        """See `Export`."""
        self._sink.emit(spans)

    def close(self, timeout_s: float) -> bool:
        """See `Export`."""
        before = self._sink.stats
        flushed = self._sink.flush(timeout_s)
        if not flushed and isinstance(self._sink, ExporterSink):
            self._sink.close(0)  # the time is over
        else:
            self._sink.close()
        after = self._sink.stats
        return flushed and (after.dropped, after.failed) == (before.dropped, before.failed)

    def snapshot(self) -> ExportSnapshot:
        """See `Export`."""
        stats = self._sink.stats
        waiting = stats.emitted - stats.exported - stats.failed - stats.dropped
        return ExportSnapshot(
            exporter=self._name,
            emitted=stats.emitted,
            exported=stats.exported,
            failed=stats.failed,
            dropped={"queue_full": stats.dropped},
            queued_spans=max(0, waiting),
        )


class ExportChoice:
    """Where spans will go: checked before anything is loaded, opened after privileges are given up.

    Args:
        encoder: "auto", "native", or "sdk" to send OTLP by the SDK's own exporter.
        output: a file for all spans as OTLP JSON lines, which takes the SDK path; "" = none.

    Attributes:
        settings: of the native way; None when it is another.

    Raises:
        ConfigError: an OTEL_* variable or the file is wrong, or the two arguments contradict each other.
        UnsupportedError: a package that the choice needs is not installed.
    """

    def __init__(self, *, encoder: Encoder, output: str) -> None:
        if output and encoder == "native":
            raise ConfigError("--output writes what the SDK's path makes: leave out --encoder native")
        self._encoder: Encoder = "sdk" if output else encoder
        self.settings: OtlpSettings | None = None
        names = [] if sdk_disabled() else exporter_names()
        if "otlp" in names:
            settings = read_settings(os.environ)
            if self._encoder != "sdk" and names == ["otlp"]:
                self.settings = settings
        if self.settings is None:
            for name in names:
                find_exporter(name)
        self._file = FileSpanExporter(output) if output else None

    def files(self) -> list[str]:
        """Return the files that the exporter reads."""
        settings = self.settings
        found = [settings.certificate, settings.client_key, settings.client_certificate] if settings else []
        return [name for name in found if name]

    def open(self) -> Export:
        """Make it; what is sent from now on goes there.

        Raises:
            ConfigError: an OTEL_* variable is wrong.
            UnsupportedError: a package that the choice needs is not installed.
        """
        resource = kernel_resource(os.environ.get(_SERVICE_NAME, "").strip() or DEFAULT_SERVICE_NAME)
        files = [self._file] if self._file is not None else []
        sink = make_exporter(os.environ, resource, encoder=self._encoder, more=files)
        if isinstance(sink, OtlpSink):
            return NativeExport(sink)
        return SdkExport(sink, ", ".join([*exporter_names(), *(["file"] if files else [])]) or "none")
