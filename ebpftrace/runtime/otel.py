# SPDX-License-Identifier: Apache-2.0
"""Finding the application's TracerProvider, whenever and however it is made.

A provider is bound when it is asked for a tracer, which comes before its first span: so it does not matter whether
the application sets it before `ebpftrace.start()`, after it, or never sets it globally.
"""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from ebpftrace.errors import EbpftraceError
from ebpftrace.spans.otlp_json import FileSpanExporter
from ebpftrace.spans.sdk import SdkSink

if TYPE_CHECKING:
    from ebpftrace.spans.model import KernelSpan
    from ebpftrace.spans.sink import Sink, SinkStats

logger = logging.getLogger("ebpftrace.runtime")


class ProviderBinding:
    """Our span processor in every provider, and kernel spans into the application's.

    Args:
        make_processor: makes the processor that each provider gets in front of its others.
        service_name: of the kernel's spans.
        output: a file that gets all spans too, as OTLP JSON lines; "" for none.
    """

    def __init__(self, make_processor: Callable[[], SpanProcessor], service_name: str, output: str = "") -> None:
        self._make_processor = make_processor
        self._service_name = service_name
        self._output = output
        self._lock = threading.Lock()
        self._sinks: weakref.WeakKeyDictionary[Any, SdkSink] = weakref.WeakKeyDictionary()
        self._last: weakref.ref[Any] | None = None
        self._own: Sink | None = None  # for spans of which no provider is known
        self._active = True
        self._unhook = _hook_get_tracer(self.bind)
        provider = trace._TRACER_PROVIDER  # not get_tracer_provider(): that may make one
        if isinstance(provider, TracerProvider):
            self.bind(provider)

    def bind(self, provider: TracerProvider) -> None:
        """Bind one provider; idempotent, never raises."""
        if not self._active or provider in self._sinks:
            return
        with self._lock:
            if provider in self._sinks:
                return
            try:
                sink = SdkSink(provider, service_name=self._service_name)
                if self._output:
                    provider.add_span_processor(BatchSpanProcessor(FileSpanExporter(self._output)))
                _put_first(provider, self._make_processor())
            except EbpftraceError as error:
                self._active = False  # the application asks for tracers often: say it once
                logger.warning("kernel spans will not reach this TracerProvider: %s", error)
                return
            self._sinks[provider] = sink
            self._last = weakref.ref(provider)

    def _sink(self) -> Sink:
        """The global provider's sink; else that of the provider seen last; else one of our own by OTEL_*."""
        for provider in (trace._TRACER_PROVIDER, self._last and self._last()):
            sink = self._sinks.get(provider) if provider is not None else None
            if sink is not None:
                return sink
        if self._own is None:
            from ebpftrace.spans.export import autoexport_sink

            exporters = [FileSpanExporter(self._output)] if self._output else []
            default = "none" if exporters else "otlp"
            self._own = autoexport_sink(service_name=self._service_name, exporters=exporters, default=default)
        return self._own

    def emit(self, spans: Sequence[KernelSpan]) -> None:
        """Pass kernel spans on; called by the reader's thread only."""
        self._sink().emit(spans)

    def stats(self) -> list[SinkStats]:
        """Return the counters of every sink that was used."""
        sinks: list[Sink] = list(self._sinks.values())
        return [sink.stats for sink in [*sinks, *([self._own] if self._own else [])]]

    def close(self) -> None:
        """Bind no more providers and close what is our own; idempotent."""
        self._active = False
        self._unhook()
        if self._own is not None:
            self._own.close()


def _put_first(provider: TracerProvider, processor: SpanProcessor) -> None:
    """Add a processor in front of the others: they are flushed and shut down in this order."""
    active = provider._active_span_processor
    before = getattr(active, "_span_processors", None)
    provider.add_span_processor(processor)
    after = getattr(active, "_span_processors", None)
    if isinstance(before, tuple) and after == (*before, processor):
        active._span_processors = (processor, *before)


def _hook_get_tracer(bind: Callable[[TracerProvider], None]) -> Callable[[], None]:
    """Have `bind` called with every provider that is asked for a tracer; returns what takes that back."""
    original = TracerProvider.get_tracer

    @functools.wraps(original)
    def get_tracer(self: TracerProvider, *args: Any, **kwargs: Any) -> trace.Tracer:
        bind(self)
        return original(self, *args, **kwargs)

    TracerProvider.get_tracer = get_tracer  # type: ignore[method-assign]

    def unhook() -> None:
        if TracerProvider.get_tracer is get_tracer:
            TracerProvider.get_tracer = original  # type: ignore[method-assign]

    return unhook
