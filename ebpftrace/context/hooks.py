# SPDX-License-Identifier: Apache-2.0
"""The place in OpenTelemetry where the current context changes, and our publisher in it.

`opentelemetry.context` looks its runtime context up in a module global at every attach and detach, so replacing the
global reaches code that was imported before us. The one that was there, a vendor's perhaps, goes on working inside
ours. Switches of context that OpenTelemetry does not see (asyncio, greenlets) are followed by the hooks of
`switches.py`; where none does, what is published becomes stale, never wrong: the publisher stamps it with what CPython
itself keeps of the thread's contexts.
"""

from __future__ import annotations

import contextvars
import logging
from typing import TYPE_CHECKING

import opentelemetry.context as otel
from opentelemetry.trace.propagation import _SPAN_KEY

from ebpftrace.context import _publisher, switches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger("ebpftrace.context")

MASK_KEY = otel.create_key("ebpftrace-mask")
"""Context key; the value is (mask for this context and all below, mask for one span alone, that span's id)."""


def install(on_fork: Callable[[], None], context_hooks: Sequence[str] = ("auto",)) -> None:
    """Publish from now on, in every thread, at each attach, detach and switch of contexts; idempotent.

    Args:
        on_fork: called in a forked child, once, at its first attach.
        context_hooks: how to learn of switches, as in the setting.
    """
    _publisher.configure(span_key=_SPAN_KEY, mask_key=MASK_KEY, on_fork=on_fork)
    runtime = otel._RUNTIME_CONTEXT
    inner = runtime.inner if isinstance(runtime, _publisher.RuntimeContext) else runtime
    variable, own = _context_variable(inner)
    if inner is runtime:
        reached = variable if own else None
        otel._RUNTIME_CONTEXT = _publisher.RuntimeContext(inner, reached)  # type: ignore[assignment]
    publish_current()
    if variable is None or not own:
        switches.guard(variable)
    else:
        switches.follow(variable, context_hooks, publish_current)
    publish_current()


def _context_variable(inner: object) -> tuple[contextvars.ContextVar[object] | None, bool]:
    """The variable behind a runtime context, and is that OpenTelemetry's own?

    Its own is reached directly, which costs no Python call. One that a vendor derived from it may make something else
    of the variable's value. One of another make may have variables that nobody can know of.
    """
    from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext

    variable = getattr(inner, "_current_context", None)
    known = isinstance(inner, ContextVarsRuntimeContext) and isinstance(variable, contextvars.ContextVar)
    own = known and type(inner) is ContextVarsRuntimeContext
    if not own:
        logger.debug("the runtime context is a %s, which is called for each attach", type(inner).__qualname__)
    return (variable if known else None), own


def publish_current() -> None:
    """Publish what the calling thread has current: for contexts attached before the table was there."""
    runtime = otel._RUNTIME_CONTEXT
    if isinstance(runtime, _publisher.RuntimeContext):
        runtime.publish()


def uninstall() -> None:
    """Put back what was there, unless somebody wrapped us meanwhile: then stay, doing nothing."""
    switches.leave()
    runtime = otel._RUNTIME_CONTEXT
    if isinstance(runtime, _publisher.RuntimeContext):
        otel._RUNTIME_CONTEXT = runtime.inner
