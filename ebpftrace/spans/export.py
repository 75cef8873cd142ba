# SPDX-License-Identifier: Apache-2.0
"""Exporting where nobody has set up the SDK: an exporter of our own, or a whole SDK, by the OTEL_* variables."""

from __future__ import annotations

import logging
import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.environment_variables import OTEL_TRACES_EXPORTER
from opentelemetry.sdk.environment_variables import OTEL_SDK_DISABLED
from opentelemetry.sdk.trace import SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from ebpftrace.spans.bounded import BoundedCall
from ebpftrace.spans.counting import CountingExporter
from ebpftrace.spans.exporters import exporter_names, find_exporter, load_exporters
from ebpftrace.spans.resource import DEFAULT_SERVICE_NAME, kernel_resource
from ebpftrace.spans.sdk import ProcessorSink
from ebpftrace.spans.sink import NullSink, SinkStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

_CONFIGURATORS = "opentelemetry_configurator"
_CONFIGURATOR_CHOICE = "OTEL_PYTHON_CONFIGURATOR"
_CLOSE_S = 5.0

_log = logging.getLogger("ebpftrace.spans")


class ExporterSink(ProcessorSink):
    """Kernel spans through exporters that this sink owns, each behind a BatchSpanProcessor set by OTEL_BSP_*.

    Args:
        exporters: where the spans go.
        resource: what they are said to come from.
        patience_s: the longest `emit` waits for room in the queues.

    Raises:
        ValueError: the OTEL_BSP_* variables contradict each other.
    """

    def __init__(self, exporters: Sequence[SpanExporter], resource: Resource, *, patience_s: float = 0.2) -> None:
        self._exporters = [CountingExporter(exporter) for exporter in exporters]
        processor = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]  # the SDK forgot "-> None"
        for exporter in self._exporters:
            processor.add_span_processor(BatchSpanProcessor(exporter))
        super().__init__(processor, resource, patience_s=patience_s)
        self._closer = BoundedCall("ebpftrace-close")

    def close(self, timeout_s: float | None = None) -> None:
        """Flush, but when the backend is down give up after 5 s instead of the SDK's 30 s a processor.

        Args:
            timeout_s: the longest to flush for, and then to shut down, which always has a second; 0 = the caller has
                flushed, None = 5 s.
        """
        patience = _CLOSE_S if timeout_s is None else timeout_s
        if self._closed:
            return
        super().close()
        if patience <= 0 or not self.flush(patience):
            # Ends the exporters' waiting between retries, so that the processors' threads see their end.
            self._closer.run(self._shut_exporters, 1.0)
        self._closer.run(self._processor.shutdown, max(1.0, patience))

    def _shut_exporters(self) -> None:
        for exporter in self._exporters:
            exporter.shutdown()

    @property
    def stats(self) -> SinkStats:
        """What the exporters said."""
        handed = super().stats
        return SinkStats(
            emitted=handed.emitted,
            exported=sum(exporter.exported for exporter in self._exporters),
            failed=handed.failed + sum(exporter.failed for exporter in self._exporters),
            dropped=handed.dropped,
        )


def autoexport_sink(
    *,
    service_name: str = DEFAULT_SERVICE_NAME,
    exporters: Sequence[SpanExporter] = (),
    default: str = "otlp",
) -> ExporterSink | NullSink:
    """Make a sink from the OTEL_* variables, for a process without an SDK. Never raises.

    OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_* and OTEL_BSP_* mean what they mean to the SDK; the
    one difference is that `otlp` without a protocol is http/protobuf.

    Args:
        service_name: service.name of the kernel's resource.
        exporters: further exporters, used whatever the variables say except OTEL_SDK_DISABLED.
        default: what an unset OTEL_TRACES_EXPORTER means.

    Returns:
        A sink that exports; when there is nothing to export with, one that counts spans as dropped.
    """
    if sdk_disabled():
        return NullSink(f"{OTEL_SDK_DISABLED} is true")
    chosen = [*load_exporters(default), *exporters]
    if not chosen:
        wanted = ", ".join(exporter_names(default)) or "none"
        return NullSink(f"no span exporter ({OTEL_TRACES_EXPORTER}: {wanted})")
    try:
        return ExporterSink(chosen, kernel_resource(service_name))
    except ValueError as err:
        _log.warning("spans are not exported: %s; check the OTEL_BSP_* variables", err)
        return NullSink(str(err))


def sdk_disabled() -> bool:
    """Tell whether OTEL_SDK_DISABLED is true, read as the SDK reads it."""
    return os.environ.get(OTEL_SDK_DISABLED, "").strip().lower() == "true"


def configure_sdk(*, exporters: Sequence[SpanExporter] = (), default: str = "otlp") -> TracerProvider:
    """Give a program that has no SDK TracerProvider the one its OTEL_* variables describe, and set it globally.

    With a distribution installed (entry point group `opentelemetry_configurator`, or the one OTEL_PYTHON_CONFIGURATOR
    names) its configurator does it, metrics and logs included. Otherwise, and when the configurator fails (logged),
    it is `TracerProvider()`, which reads sampler, limits and resource itself, with the exporters of
    OTEL_TRACES_EXPORTER. A provider the program has set already is kept and only gets `exporters`.

    Args:
        exporters: further exporters, each behind a BatchSpanProcessor; none of them with OTEL_SDK_DISABLED.
        default: what an unset OTEL_TRACES_EXPORTER means.
    """
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = _by_configurator(default) or _by_ourselves(default)
    if not sdk_disabled():
        for exporter in exporters:
            _add(provider, exporter)
    return provider


def _by_configurator(default: str) -> TracerProvider | None:
    wanted = os.environ.get(_CONFIGURATOR_CHOICE)
    for entry in entry_points(group=_CONFIGURATORS):
        if wanted and entry.name != wanted:
            continue
        try:
            entry.load()().configure(**_configurator_arguments(default))
        except Exception as err:  # noqa: BLE001  (a distribution's code; ours goes on without it)
            _log.warning("OpenTelemetry configurator %r failed: %s", entry.name, err)
        break
    provider = trace.get_tracer_provider()
    return provider if isinstance(provider, TracerProvider) else None


def _configurator_arguments(default: str) -> dict[str, Any]:
    # The SDK takes an unset OTEL_TRACES_EXPORTER for "none", and names given here for entry points: `otlp` is none.
    if os.environ.get(OTEL_TRACES_EXPORTER, "").strip():
        return {}
    names = [find_exporter(name).name for name in exporter_names(default)]
    return {"trace_exporter_names": names} if names else {}


def _by_ourselves(default: str) -> TracerProvider:
    provider = TracerProvider()
    if not sdk_disabled():
        for exporter in load_exporters(default):
            _add(provider, exporter)
    trace.set_tracer_provider(provider)
    return provider


def _add(provider: TracerProvider, exporter: SpanExporter) -> None:
    try:
        processor: SpanProcessor = BatchSpanProcessor(exporter)
    except ValueError as err:
        _log.warning("spans are not exported: %s; check the OTEL_BSP_* variables", err)
        return
    provider.add_span_processor(processor)
