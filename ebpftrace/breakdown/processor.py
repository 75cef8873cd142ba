# SPDX-License-Identifier: Apache-2.0
"""The span processor that measures each span against the kernel's account of its thread.

The breakdown is a *thread's* time between a span's start and end, so it is given to a span that started and ended on
one thread. Where that thread ran other tasks meanwhile (an event loop), the span gets its own context's share, and the
rest as suspended time; where not every switch was seen, it gets none rather than a wrong one, and is counted.
"""

from __future__ import annotations

import logging
import sys
from asyncio import _get_running_loop
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from ebpftrace.context import _publisher

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span

# What end() says; the kernel's own spans pass here too
_NAMES = {
    _publisher.KERNEL_SPAN: "",
    _publisher.MEASURED: "measured",
    _publisher.ANOTHER_THREAD: "another_thread",
    _publisher.SHARED_THREAD: "shared_thread",
    _publisher.NO_ROOM: "no_room",
}

logger = logging.getLogger("ebpftrace.breakdown")

_FLUSH_S = 2.0  # the reader looks every 50 ms; more than this is an exporter that hangs

# Looked up once: these run for every span of the application
_begin, _end = _publisher.begin, _publisher.end


class BreakdownProcessor(SpanProcessor):
    """Adds `ebpftrace.time.*`, integers in nanoseconds, to every ended span that is bound to a thread.

    A part that is zero is left out, but for `on_cpu`: most spans then carry one attribute and not nine.

    A provider keeps it for good, connected to the running library or to none.
    """

    def __init__(self) -> None:
        self._flush: Callable[[float], bool] = _nothing_to_flush
        self._measuring = False
        self._verdicts = dict.fromkeys(_NAMES, 0)
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
            _begin(span)
        except Exception:  # noqa: BLE001  (into the application nothing may be raised)
            self._failed()

    def on_end(self, span: ReadableSpan) -> None:
        """Put the difference on the span; never raises."""
        if not self._measuring:
            return
        try:
            self._verdicts[_end(span, _shared_thread)] += 1
        except Exception:  # noqa: BLE001
            self._failed()

    def _failed(self) -> None:
        self.errors += 1
        if self.errors == 1:
            logger.warning("a span got no kernel time breakdown; later failures are only counted", exc_info=True)  # noqa: LOG014

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Bring in the kernel's spans, so that the processors behind this one flush them too.

        Takes a part of the time only and is never the one that failed: the SDK would not flush the others then.
        """
        self._flush(min(timeout_millis / 4000, _FLUSH_S))
        return True

    def shutdown(self) -> None:
        """Bring in the kernel's spans while there is still somebody to export them."""
        self._flush(1.0)

    def stats(self) -> dict[str, int]:
        """Return how many spans were measured, and why others were not."""
        counts = {name: self._verdicts[verdict] for verdict, name in _NAMES.items() if name}
        return {**counts, "errors": self.errors}


def _nothing_to_flush(timeout_s: float) -> bool:  # noqa: ARG001  (stands in for a running library's)
    return True


def _shared_thread() -> bool:
    """Does this thread take turns between tasks?"""
    if _get_running_loop() is not None:
        return True
    greenlet = sys.modules.get("greenlet")
    return greenlet is not None and greenlet.getcurrent().parent is not None
