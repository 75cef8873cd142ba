# SPDX-License-Identifier: Apache-2.0
"""Kernel spans as the SDK's spans, through the application's own exporter.

The spans enter the application's TracerProvider where its own ended spans do, so one trace leaves through one exporter,
with the application's batching, credentials and endpoint.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from ebpftrace._version import version
from ebpftrace.errors import UnsupportedError
from ebpftrace.spans.backlog import Backlog
from ebpftrace.spans.bounded import BoundedCall
from ebpftrace.spans.protobuf import PROGRAM
from ebpftrace.spans.resource import DEFAULT_SERVICE_NAME, SharedResource, kernel_resource
from ebpftrace.spans.services import service_attributes
from ebpftrace.spans.sink import SinkStats
from ebpftrace.spans.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.resources import Resource

    from ebpftrace.spans.model import AttributeValue, KernelSpan

SCOPE_NAME = "ebpftrace.kernel"

_log = logging.getLogger("ebpftrace.spans")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_STATUSES = {
    "unset": Status(StatusCode.UNSET),
    "ok": Status(StatusCode.OK),
    "error": Status(StatusCode.ERROR),
}
_KINDS = {kind.name.lower(): kind for kind in SpanKind}
_INT64_MAX = (1 << 63) - 1
_INT64_MIN = -(1 << 63)
_CHUNK = 128  # spans between two looks at the queues
_POLL_S = 0.001
_SERVICES = 256  # whose resources are kept: their names may come from records


class SpanBuilder:
    """Makes the SDK's finished spans; scope, flags and each service's resource are shared by all of them.

    Args:
        resource: what spans are said to come from that name no service of their own.
    """

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self.scope = InstrumentationScope(SCOPE_NAME, version)
        self._resources: dict[str, Resource] = {}

    def __call__(self, span: KernelSpan) -> ReadableSpan:
        """Keep ids, times and attributes as the kernel gave them; sampled, because an unsampled span has no record."""
        parent = None
        if span.parent_span_id:
            parent = SpanContext(span.trace_id, span.parent_span_id, False, _SAMPLED)
        return ReadableSpan(
            span.name,
            SpanContext(span.trace_id, span.span_id, False, _SAMPLED),
            parent,
            self._resource_of(span.service) if span.service else self.resource,
            _attributes(span),
            [Event(name, timestamp=time_ns) for name, time_ns in span.events] if span.events else (),
            [Link(SpanContext(*ids, False, _SAMPLED)) for ids in span.links] if span.links else (),
            kind=_KINDS[span.kind],
            status=_STATUSES[span.status] if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self.scope,
        )

    def _resource_of(self, service: str) -> Resource:
        found = self._resources.get(service)
        if found is None:
            if len(self._resources) >= _SERVICES:
                self._resources.clear()
            attributes = service_attributes(self.resource.attributes, service)
            found = self._resources[service] = SharedResource(attributes, self.resource.schema_url)
        return found


def _attributes(span: KernelSpan) -> dict[str, AttributeValue]:
    # No BoundedAttributes: their limits, locks and cleaning are for what users pass in. Decoders made these values,
    # and an exporter accepts any mapping.
    attributes = span.attributes
    if PROGRAM not in attributes:
        attributes = {**attributes, PROGRAM: span.program}
    for value in attributes.values():
        if type(value) is tuple or (type(value) is int and not _INT64_MIN <= value <= _INT64_MAX):
            return {key: _fitting(value) for key, value in attributes.items()}
    return attributes


def _fitting(value: Any) -> Any:
    # OTLP integers are int64 and exporters throw larger ones away; a u64 cookie or address survives as text.
    if type(value) is int and not _INT64_MIN <= value <= _INT64_MAX:
        return str(value)
    return tuple(map(_fitting, value)) if type(value) is tuple else value


class ProcessorSink:
    """Feeds a span processor, leaving room in its queue, and never lets its errors out.

    `emit` is for one thread at a time. It waits up to `patience_s` when the queue is three quarters full (that is the
    backpressure on the ring buffers, which count what they lose); when that did not help it drops the rest at once,
    and goes on dropping without waiting until there is room again.

    Args:
        processor: where ended spans go; not shut down by `close`.
        resource: what the spans are said to come from.
        patience_s: the longest `emit` waits for room.
    """

    def __init__(self, processor: SpanProcessor, resource: Resource, *, patience_s: float = 0.2) -> None:
        self.build = SpanBuilder(resource)
        self._processor = processor
        self._backlog = Backlog(processor)
        self._patience_s = patience_s
        self._stalled = False
        self._closed = False
        self._tally = Tally()
        self._flusher = BoundedCall("ebpftrace-flush")

    def emit(self, spans: Sequence[KernelSpan]) -> None:
        """Hand a batch to the processor."""
        total = len(spans)
        self._tally.add("emitted", total)
        done = 0
        while done < total and not self._closed:
            room = self._room()
            if room == 0:
                if self._tally.first("stalls"):
                    _log.warning("the span exporter does not keep up: kernel spans are dropped and counted")
                break
            chunk = spans[done : done + min(room, _CHUNK)]
            self._hand_over(chunk)
            done += len(chunk)
        self._tally.add("dropped", total - done)

    def _room(self) -> int:
        room = self._backlog.room()
        if room == 0 and not self._stalled:
            deadline = time.monotonic() + self._patience_s
            while room == 0 and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                room = self._backlog.room()
        self._stalled = room == 0
        return _CHUNK if room is None else room

    def _hand_over(self, spans: Sequence[KernelSpan]) -> None:
        build, on_end = self.build, self._processor.on_end
        failed = invalid = 0
        for span in spans:
            if not (span.trace_id and span.span_id):
                invalid += 1
                continue
            try:
                on_end(build(span))
            except Exception:  # noqa: BLE001  (the application's processors may raise anything)
                failed += 1
                if self._tally.first("errors"):
                    _log.warning(
                        "a span processor raised on a kernel span; further ones are only counted", exc_info=True
                    )
        self._tally.add("dropped", invalid)
        self._tally.add("failed", failed)
        self._tally.add("handed", len(spans) - failed - invalid)

    def flush(self, timeout_s: float) -> bool:
        """Have the processor export what it holds, within `timeout_s`, whatever it does with timeouts."""
        return self._flusher.run(lambda: self._processor.force_flush(int(timeout_s * 1000)), timeout_s)

    def close(self) -> None:
        """Take no more spans. The processor belongs to the application and goes on."""
        self._closed = True

    @property
    def stats(self) -> SinkStats:
        """What was handed over counts as exported: what becomes of it is in the application's exporter's hands."""
        tally = self._tally
        return SinkStats(
            emitted=tally["emitted"], exported=tally["handed"], failed=tally["failed"], dropped=tally["dropped"]
        )


class SdkSink(ProcessorSink):
    """Kernel spans into an application's TracerProvider.

    Args:
        provider: the SDK's TracerProvider.
        service_name: service.name of the kernel's resource.
        patience_s: the longest `emit` waits for room in the provider's queues.

    Raises:
        UnsupportedError: `provider` is not the SDK's, so there is no processor to feed.
    """

    def __init__(self, provider: Any, *, service_name: str = DEFAULT_SERVICE_NAME, patience_s: float = 0.2) -> None:
        # Private, but the only place where spans can enter that nobody started through a Tracer; there since SDK 0.x.
        processor = getattr(provider, "_active_span_processor", None)
        if not isinstance(processor, SpanProcessor):
            kind = f"{type(provider).__module__}.{type(provider).__qualname__}"
            raise UnsupportedError(
                "a TracerProvider that takes kernel spans",
                f"{kind} has no _active_span_processor",
                "pass an opentelemetry.sdk.trace.TracerProvider, or use ebpftrace.spans.export.autoexport_sink()",
            )
        super().__init__(processor, kernel_resource(service_name), patience_s=patience_s)
