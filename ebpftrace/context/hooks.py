# SPDX-License-Identifier: Apache-2.0
"""The place in OpenTelemetry where the current context changes, and our publisher in it.

`opentelemetry.context` looks its runtime context up in a module global at every attach and detach, so replacing the
global reaches code that was imported before us. The one that was there, a vendor's perhaps, goes on working inside
ours. Switches of context that OpenTelemetry does not see (asyncio, greenlets) make what is published stale, never
wrong: the publisher stamps it with CPython's own count of context switches.
"""

from __future__ import annotations

import contextvars
import logging
from typing import TYPE_CHECKING

import opentelemetry.context as otel
from opentelemetry.trace.propagation import _SPAN_KEY

from ebpftrace.context import _publisher

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("ebpftrace.context")

MASK_KEY = otel.create_key("ebpftrace-mask")
"""Context key; the value is (mask for this context and all below, mask for one span alone, that span's id)."""


def install(on_fork: Callable[[], None]) -> None:
    """Publish from now on, in every thread, at each attach and detach; idempotent.

    Args:
        on_fork: called in a forked child, once, at its first attach.
    """
    _publisher.configure(span_key=_SPAN_KEY, mask_key=MASK_KEY, on_fork=on_fork)
    inner = otel._RUNTIME_CONTEXT
    if not isinstance(inner, _publisher.RuntimeContext):
        otel._RUNTIME_CONTEXT = _publisher.RuntimeContext(inner, _context_variable(inner))  # type: ignore[assignment]
    publish_current()


def _context_variable(inner: object) -> contextvars.ContextVar[object] | None:
    """The variable behind OpenTelemetry's own runtime context: reached directly, it costs no Python call."""
    from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext

    variable = getattr(inner, "_current_context", None)
    if type(inner) is ContextVarsRuntimeContext and isinstance(variable, contextvars.ContextVar):
        return variable
    logger.debug("the runtime context is a %s, which is called for each attach", type(inner).__qualname__)
    return None


def publish_current() -> None:
    """Publish what the calling thread has current: for contexts attached before the table was there."""
    runtime = otel._RUNTIME_CONTEXT
    if isinstance(runtime, _publisher.RuntimeContext):
        runtime.publish()


def uninstall() -> None:
    """Put back what was there, unless somebody wrapped us meanwhile: then stay, doing nothing."""
    runtime = otel._RUNTIME_CONTEXT
    if isinstance(runtime, _publisher.RuntimeContext):
        otel._RUNTIME_CONTEXT = runtime.inner
