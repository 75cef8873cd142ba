# SPDX-License-Identifier: Apache-2.0
"""The span processor that measures each span against the kernel's account of its thread.

The breakdown is a *thread's* time between a span's start and end, so it is given to a span that started and ended on
one thread while that thread ran nothing else. A span whose thread ran other tasks meanwhile (an event loop) gets none
rather than a wrong one, and is counted.
"""

from __future__ import annotations

import logging
import sys
from asyncio import _get_running_loop
from typing import TYPE_CHECKING, Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from ebpftrace.context import _publisher

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span

logger = logging.getLogger("ebpftrace.breakdown")

_SNAPSHOT = "_ebpftrace_snapshot"


class BreakdownProcessor(SpanProcessor):
    """Adds `ebpftrace.time.*`, integers in nanoseconds, to every ended span that is bound to a thread.

    A part that is zero is left out, but for `on_cpu`: most spans then carry one attribute and not nine.

    A provider keeps it for good, connected to the running library or to none.
    """

    def __init__(self) -> None:
        self._flush: Callable[[float], bool] = _nothing_to_flush
        self._measuring = False
        self.measured = 0
        self.another_thread = 0
        self.shared_thread = 0
        self.no_room = 0
        self.errors = 0

    def connect(self, flush: Callable[[float], bool], *, measure: bool) -> None:
        """Serve a running library.

        Args:
            flush: brings in what the kernel still has, within so many seconds.
            measure: add the breakdown; without it, only the flushing remains.
        """
        self._flush = flush
        self._measuring = measure

    def disconnect(self) -> None:
        """Do nothing until the library runs again."""
        self._flush = _nothing_to_flush
        self._measuring = False

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        """Note the thread's account; never raises."""
        if not self._measuring:
            return
        try:
            snapshot = _publisher.snapshot()
            if snapshot is not None:
                # on the attributes, which Span.end() hands on to what on_end() gets; and gone with them
                setattr(span._attributes, _SNAPSHOT, snapshot)
        except Exception:  # noqa: BLE001  (into the application nothing may be raised)
            self._failed()

    def on_end(self, span: ReadableSpan) -> None:
        """Put the difference on the span; never raises."""
        try:
            attributes = span._attributes
            snapshot = getattr(attributes, _SNAPSHOT, None)
            if snapshot is not None:
                self._measure(attributes, snapshot)
        except Exception:  # noqa: BLE001
            self._failed()

    def _measure(self, attributes: Any, snapshot: bytes) -> None:
        delattr(attributes, _SNAPSHOT)
        times: dict[str, Any] = {}
        verdict = _publisher.elapsed(snapshot, times)
        if verdict == _publisher.ANOTHER_THREAD:
            self.another_thread += 1
        elif verdict == _publisher.CONTEXT_MOVED and _shared_thread():
            self.shared_thread += 1
        elif not _has_room(attributes, len(times)):
            self.no_room += 1
        else:
            # the span has ended and its attributes are closed to setters; this is the span's last writer
            with attributes._lock:
                attributes._dict.update(times)
            self.measured += 1

    def _failed(self) -> None:
        self.errors += 1
        if self.errors == 1:
            logger.warning("a span got no kernel time breakdown; later failures are only counted", exc_info=True)  # noqa: LOG014

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Bring in the kernel's spans, so that the processors behind this one flush them too."""
        return self._flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Bring in the kernel's spans while there is still somebody to export them."""
        self._flush(1.0)

    def stats(self) -> dict[str, int]:
        """Return how many spans were measured, and why others were not."""
        return {
            "measured": self.measured,
            "another_thread": self.another_thread,
            "shared_thread": self.shared_thread,
            "no_room": self.no_room,
            "errors": self.errors,
        }


def _has_room(attributes: Any, count: int) -> bool:
    """The limits that the application set for its spans are for us too."""
    if not isinstance(attributes, BoundedAttributes):
        return False
    return attributes.maxlen is None or len(attributes) + count <= attributes.maxlen


def _nothing_to_flush(timeout_s: float) -> bool:  # noqa: ARG001  (stands in for a running library's)
    return True


def _shared_thread() -> bool:
    """Does this thread take turns between tasks?"""
    if _get_running_loop() is not None:
        return True
    greenlet = sys.modules.get("greenlet")
    return greenlet is not None and greenlet.getcurrent().parent is not None
