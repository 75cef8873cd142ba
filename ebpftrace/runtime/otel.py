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
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from ebpftrace.breakdown import BreakdownProcessor
from ebpftrace.errors import EbpftraceError
from ebpftrace.spans.green import threads_are_greenlets
from ebpftrace.spans.otlp_json import FileSpanExporter
from ebpftrace.spans.sdk import SdkSink
from ebpftrace.spans.sink import NullSink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ebpftrace.spans.model import KernelSpan
    from ebpftrace.spans.sink import Sink, SinkStats

logger = logging.getLogger("ebpftrace.runtime")


class _Bound:
    """What one provider was given; it stays there for good, because the SDK takes no processor back."""

    def __init__(self, processor: BreakdownProcessor) -> None:
        self.processor = processor
        self.outputs: set[str] = set()


_bound: weakref.WeakKeyDictionary[TracerProvider, _Bound] = weakref.WeakKeyDictionary()


class ProviderBinding:
    """Our span processor in every provider, and kernel spans into the application's.

    Args:
        flush: brings in what the kernel still has; providers call it before they flush or shut down.
        service_name: of the kernel's spans.
        output: a file that gets all spans too, as OTLP JSON lines; "" for none.
        follow_threads: called when threads have become greenlets meanwhile, before a provider is bound.
    """

    def __init__(
        self,
        flush: Callable[[float], bool],
        *,
        service_name: str,
        output: str = "",
        follow_threads: Callable[[], None] = lambda: None,
    ) -> None:
        self._flush = flush
        self._follow_threads = follow_threads
        self._greenlets = threads_are_greenlets()
        self._measure = False
        self._service_name = service_name
        self._output = _writable(output)
        self._lock = threading.Lock()
        self._sinks: weakref.WeakKeyDictionary[TracerProvider, SdkSink] = weakref.WeakKeyDictionary()
        self._last: weakref.ref[TracerProvider] | None = None
        self._own: Sink | None = None  # for spans of which no provider is known
        self._active = True
        self._unhook = hook_get_tracer(self.bind)
        for known in list(_bound):  # after a fork, or stop() and start(), the application asks for no new tracers
            self.bind(known)
        provider = trace._TRACER_PROVIDER  # not get_tracer_provider(): that may make one
        if isinstance(provider, TracerProvider):
            self.bind(provider)

    def bind(self, provider: TracerProvider) -> None:
        """Bind one provider; idempotent, never raises."""
        if not self._greenlets and threads_are_greenlets():
            self._greenlets = True
            self._lock = threading.Lock()  # of their kind: who holds it may let others run
            self._follow_threads()
        if not self._active or provider in self._sinks:
            return
        with self._lock:
            if provider in self._sinks:
                return
            try:
                sink = SdkSink(provider, service_name=self._service_name)
                self._equip(provider)
            except Exception as error:  # noqa: BLE001  (this is the application asking for a tracer)
                self._active = False  # it asks often: say it once
                logger.warning("kernel spans will not reach this TracerProvider: %s", error)
                return
            self._sinks[provider] = sink
            self._last = weakref.ref(provider)

    def _equip(self, provider: TracerProvider) -> None:
        bound = _bound.get(provider)
        if bound is None:
            bound = _Bound(BreakdownProcessor())
            _put_first(provider, bound.processor)
            _bound[provider] = bound
        if self._output and self._output not in bound.outputs:
            provider.add_span_processor(BatchSpanProcessor(FileSpanExporter(self._output)))
            bound.outputs.add(self._output)
        self._connect(provider)

    def _connect(self, provider: TracerProvider) -> None:
        _bound[provider].processor.connect(self._flush, measure=self._measure and _in_its_thread(provider))

    def measure(self, *, on: bool) -> None:
        """Put the breakdown on ended spans from now on, because somebody counts; or no more."""
        self._measure = on
        for provider in list(self._sinks):
            self._connect(provider)

    def _sink(self) -> Sink:
        """The global provider's sink; else that of the provider seen last; else one of our own by OTEL_*."""
        for provider in (trace._TRACER_PROVIDER, self._last() if self._last else None):
            sink = self._sinks.get(provider) if isinstance(provider, TracerProvider) else None
            if sink is not None:
                return sink
        if self._own is None and self._last is not None and not self._output:
            # an exporter that the application never asked for would try to reach some backend at its exit
            self._own = NullSink("the application's TracerProvider is gone")
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

    def breakdown_stats(self) -> list[dict[str, int]]:
        """Return the counters of every processor."""
        return [_bound[provider].processor.stats() for provider in list(self._sinks)]

    def forget(self) -> None:
        """Bind no more providers; in the child of a fork, where the sinks' threads are not."""
        self._active = False
        self._unhook()
        for provider in list(self._sinks):
            _bound[provider].processor.disconnect()

    def close(self) -> None:
        """Bind no more providers and close what is our own; idempotent."""
        self.forget()
        if self._own is not None:
            self._own.close()


def flush_providers(timeout_s: float) -> None:
    """Have every provider that was ever bound export what it holds; for the end of a worker process."""
    for provider in list(_bound):
        try:
            provider.force_flush(int(timeout_s * 1000))
        except Exception:  # the worker ends all the same
            logger.warning("a TracerProvider could not be flushed at the end of a worker", exc_info=True)


def _writable(output: str) -> str:
    """The file that all spans are to go to; "" with a warning when it cannot be opened."""
    if output:
        try:
            # tried as each provider will get it; the SDK forgot "-> None"
            BatchSpanProcessor(FileSpanExporter(output)).shutdown()  # type: ignore[no-untyped-call]
        except EbpftraceError as error:
            logger.warning("no spans are written to a file: %s", error)
            return ""
        except ValueError as error:
            logger.warning("no spans are written to a file: %s; check the OTEL_BSP_* variables", error)
            return ""
    return output


def _in_its_thread(provider: TracerProvider) -> bool:
    """Does this provider call its processors in the thread whose span it is? A concurrent one measures its pool."""
    return isinstance(provider._active_span_processor, SynchronousMultiSpanProcessor)


def _put_first(provider: TracerProvider, processor: SpanProcessor) -> None:
    """Add a processor in front of the others: they are flushed and shut down in this order."""
    active = provider._active_span_processor
    before = getattr(active, "_span_processors", None)
    provider.add_span_processor(processor)
    after = getattr(active, "_span_processors", None)
    if isinstance(before, tuple) and after == (*before, processor):
        active._span_processors = (processor, *before)


def hook_get_tracer(bind: Callable[[TracerProvider], None]) -> Callable[[], None]:
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
