# SPDX-License-Identifier: Apache-2.0
"""The sink of the native path: takes encoded spans, has them sent by a thread of its own, counts each."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from ebpftrace._version import version
from ebpftrace.spans.otlp.health import Health
from ebpftrace.spans.otlp.message import request_message, resource_message, scope_message
from ebpftrace.spans.otlp.outbox import Limits, Outbox
from ebpftrace.spans.otlp.retry import Backoff
from ebpftrace.spans.otlp.stats import OtlpStats
from ebpftrace.spans.otlp.transport import open_transport
from ebpftrace.spans.pipeline import Chunk
from ebpftrace.spans.protobuf import encode_spans
from ebpftrace.spans.services import service_attributes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ebpftrace.spans.model import AttributeValue, KernelSpan
    from ebpftrace.spans.otlp.settings import OtlpSettings
    from ebpftrace.spans.otlp.transport import Answer, Transport

SCOPE_NAME = "ebpftrace.kernel"
"""As in `spans.sdk`, which this must not import: it takes the OpenTelemetry SDK with it."""

_MAX_RESOURCES = 1024  # services come out of records, so their number is anybody's
_SUSPICIOUS_S = 0.1  # the Python SDK reads the variable in seconds, so some write 10

_log = logging.getLogger("ebpftrace.otlp")


class OtlpSink:
    """Sends spans to one OTLP endpoint.

    `put` and `emit` may be called from any thread, never wait and never raise. The sending thread starts with the
    first span, so a process can make the sink, learn that its settings are wrong, and give its privileges up before.

    Args:
        settings: where to, and how.
        resource: attributes of the resource; spans of another service get them with that service's name, and without
            the other `service.*`.
        transport: instead of the one that the settings ask for.

    Raises:
        ConfigError: a certificate or key cannot be read.
        UnsupportedError: the Python package of the protocol is not installed.
    """

    def __init__(
        self, settings: OtlpSettings, resource: Mapping[str, AttributeValue], *, transport: Transport | None = None
    ) -> None:
        self.settings = settings
        self._shown = settings.endpoint.partition("?")[0]  # some put a key into the query
        self._resource = dict(resource)
        self._resources: dict[str, bytes] = {}
        if settings.timeout_s < _SUSPICIOUS_S:
            _log.warning("OTEL_EXPORTER_OTLP_TIMEOUT is in milliseconds: few answers come in %g s", settings.timeout_s)
        self._scope = scope_message(SCOPE_NAME, version)
        self._transport = transport or open_transport(settings)
        self._outbox = Outbox(
            Limits(settings.max_queue_bytes, settings.max_queue_spans, settings.max_request_bytes, settings.delay_s)
        )
        self._health = Health(self._shown)
        self._requests = self._retries = 0  # written by the sending thread only
        self._last_error, self._last_error_at = "", 0.0
        self._fault_told = False
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, chunks: Sequence[Chunk]) -> None:
        """Queue encoded spans; what does not fit is dropped and counted."""
        if self._outbox.put(chunks) and self._thread is None:
            self._start_thread()

    def emit(self, spans: Sequence[KernelSpan]) -> None:
        """Queue spans that are not encoded yet; for few of them. Those without ids are dropped and counted."""
        groups: dict[tuple[str, str], list[KernelSpan]] = {}
        for span in spans:
            if span.trace_id and span.span_id:
                groups.setdefault((span.service, span.program), []).append(span)
        if invalid := len(spans) - sum(map(len, groups.values())):
            self._outbox.drop(invalid, "invalid")
        self.put([Chunk(*key, encode_spans(group), len(group)) for key, group in groups.items()])

    def flush(self, timeout_s: float) -> bool:
        """Send what is queued, now; False when the time was not enough, or spans were lost meanwhile."""
        lost = self._lost()
        return self._outbox.flush(timeout_s) and self._lost() == lost

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is queued within `timeout_s`, count the rest as dropped, end the thread. Idempotent.

        A request that is on its way when the time is over counts as dropped, though the server may yet take it.
        """
        if not self._outbox.begin_closing(timeout_s):
            return
        with self._start:
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        left = self._outbox.give_up()
        if left:
            _log.warning("%d spans were not sent to %s before the end", left, self._shown)
        self._transport.close()
        if thread is not None:
            thread.join(0.5)  # for gRPC, which can end a request from outside

    @property
    def stats(self) -> OtlpStats:
        """The counters now."""
        totals, queued_bytes = self._outbox.totals()
        return OtlpStats(
            emitted=totals.emitted,
            exported=totals.exported,
            failed=totals.failures.total(),
            dropped=totals.drops.total(),
            failures=dict(totals.failures),
            drops=dict(totals.drops),
            queued_spans=totals.queued,
            queued_bytes=queued_bytes,
            requests=self._requests,
            retries=self._retries,
            last_error=self._last_error,
            last_error_at=self._last_error_at,
        )

    @property
    def failing_since(self) -> float:
        """Epoch seconds of the first failure after the last success; 0.0 while the endpoint takes spans."""
        return self._health.failing_since

    def _lost(self) -> int:
        totals, _ = self._outbox.totals()
        return totals.failures.total() + totals.drops.total()

    def _start_thread(self) -> None:
        with self._start:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, name="ebpftrace-otlp", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads, or the interpreter is ending
                self._note_error(f"cannot start the sending thread: {error}")
                return
            self._thread = thread

    def _run(self) -> None:
        while chunks := self._outbox.take():
            try:
                self._deliver(chunks)
            except Exception as error:  # noqa: BLE001  (a fault of ours costs one request, not all that follow)
                self._note_error(f"{type(error).__name__}: {error}")
                if not self._fault_told:
                    _log.exception("cannot send spans; these, and any that this happens to again, count as failed")
                self._fault_told = True
                self._outbox.settle(lost=sum(chunk.count for chunk in chunks), failure="error")

    def _deliver(self, chunks: Sequence[Chunk]) -> None:
        count = sum(chunk.count for chunk in chunks)
        body = self._transport.prepare(self._request(chunks))
        backoff = Backoff(self.settings.retry_first_s, self.settings.retry_max_s)
        give_up_at: float | None = None
        again = False
        while (limit_s := self._outbox.remaining_s(self.settings.timeout_s)) > 0:
            hurries = self._outbox.hurries
            self._requests += 1
            self._retries += again
            again = True
            answer = self._transport.send(body, limit_s)
            if answer.verdict != "again":
                self._settle(answer, count)
                return
            self._note_error(answer.text)
            self._health.down(answer.text, self._lost())
            if answer.reached:
                give_up_at = give_up_at or time.monotonic() + self.settings.give_up_s
                if time.monotonic() >= give_up_at:
                    self._outbox.settle(lost=count, drop="expired")
                    return
            wait_s = backoff.next_s() if answer.wait_s is None else answer.wait_s
            if not self._outbox.pause(wait_s, firm=answer.wait_s is not None, hurries=hurries):
                break
            if self._outbox.hurries != hurries:
                backoff.reset()
        self._outbox.settle(lost=count, drop="closed")

    def _settle(self, answer: Answer, count: int) -> None:
        lost = self._lost()
        if answer.verdict == "refused":
            self._note_error(answer.text)
            self._health.refused(answer.text, lost)
            self._outbox.settle(lost=count, failure="refused")
            return
        self._health.well(lost)
        if answer.rejected or answer.text:
            self._note_error(answer.text or f"{answer.rejected} spans rejected")
            self._health.remark(answer.text, answer.rejected)
        self._outbox.settle(lost=answer.rejected, failure="rejected")

    def _request(self, chunks: Sequence[Chunk]) -> bytes:
        services: dict[str, list[bytes]] = {}
        for chunk in chunks:
            services.setdefault(chunk.service, []).append(chunk.payload)
        return request_message(self._scope, [(self._encoded(name), spans) for name, spans in services.items()])

    def _encoded(self, service: str) -> bytes:
        resource = self._resources.get(service)
        if resource is None:
            attributes = service_attributes(self._resource, service) if service else self._resource
            if len(self._resources) >= _MAX_RESOURCES:
                self._resources.clear()
            resource = self._resources[service] = resource_message(attributes)
        return resource

    def _note_error(self, text: str) -> None:
        self._last_error, self._last_error_at = text, time.time()
