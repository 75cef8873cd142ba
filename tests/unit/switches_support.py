# SPDX-License-Identifier: Apache-2.0
"""Contexts that are followed by hooks, and the truth to compare what is published with."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import sys
from types import SimpleNamespace

from context_support import TRACE_ID, context
from opentelemetry.context.context import Context
from opentelemetry.trace.propagation import _SPAN_KEY

from ebpftrace.context import _publisher

_METHOD_IN_DESCRIPTOR = 40  # PyMethodDescrObject.d_method
_FUNCTION_IN_METHOD = 8  # PyMethodDef.ml_meth

OF_RUN = "watcher" if sys.version_info >= (3, 14) else "run"
OF_ENTER = "watcher" if sys.version_info >= (3, 14) else "enter"
"""The hooks that do their work in this Python."""

NOTHING = Context()
VARIABLE = contextvars.ContextVar("followed", default=NOTHING)


@contextlib.contextmanager
def following(*hooks):
    """Follow a variable with some hooks; gives its runtime context and what to compare with."""
    runtime = _publisher.RuntimeContext(object(), VARIABLE)
    _publisher.follow(VARIABLE)
    try:
        for hook in hooks:
            _publisher.hook(hook)
        yield SimpleNamespace(runtime=runtime, variable=VARIABLE)
    finally:
        _publisher.leave()


def truth():
    """The ids of the span that the current context holds, as the slot has them; None without a span."""
    span = VARIABLE.get().get(_SPAN_KEY)
    if span is None:
        return None
    ids = span.get_span_context()
    return ids.trace_id.to_bytes(16, "big") + ids.span_id.to_bytes(8, "big")


def ids(number):
    """What is published for `context(number)`."""
    return TRACE_ID.to_bytes(16, "big") + number.to_bytes(8, "big")


class Checks:
    """How often what is published was compared with the truth."""

    def __init__(self):
        self.right = self.unknown = self.wrong = 0

    def look(self):
        """Compare once."""
        published, expected = _publisher.current(), truth()
        if published == expected:
            self.right += 1
        elif published is None:
            self.unknown += 1
        else:
            self.wrong += 1


@contextlib.contextmanager
def span(runtime, number):
    """A span that is current in the block."""
    token = runtime.attach(context(number))
    try:
        yield
    finally:
        runtime.detach(token)


def method_place(method):
    """Where the interpreter keeps the address of a method's function."""
    definition = ctypes.c_void_p.from_address(id(method) + _METHOD_IN_DESCRIPTOR).value
    return ctypes.c_void_p.from_address(definition + _FUNCTION_IN_METHOD)
