# SPDX-License-Identifier: Apache-2.0
"""Turning programs on for a span: `enable()` and `@traced`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, cast, overload

import opentelemetry.context as otel
from opentelemetry import trace

from ebpftrace.context.hooks import MASK_KEY
from ebpftrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("ebpftrace.context")

_bits: Mapping[str, int] = {}
"""Loaded programs and their bit in a context's mask."""


def set_program_bits(bits: Mapping[str, int]) -> None:
    """Tell which programs are loaded; called when the library starts and stops."""
    global _bits  # noqa: PLW0603  (replaced whole, so that readers need no lock)
    _bits = dict(bits)


def program_mask(names: tuple[str, ...]) -> int:
    """Return the bits of the named programs; of all loaded ones when no name is given.

    A known program that is not loaded has no bit: asking for it does nothing.
    """
    if not names:
        return sum(_bits.values())
    mask = 0
    for name in names:
        mask |= _bits.get(name, 0)
    return mask


def check_names(names: tuple[str, ...]) -> None:
    """Raise `ConfigError` for a program that does not exist, loaded or not."""
    if all(name in _bits for name in names):
        return
    from ebpftrace.programs import find  # the catalogue reads files: not for the usual case

    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"programs are given by name, not {name!r}")
        find(name)


class enable:  # noqa: N801  (used like a function)
    """Kernel tracing on for the current span, and for it only: `with ebpftrace.enable("sched"): ...`.

    Without a running library, or without a current span, this does nothing and costs next to nothing.

    Args:
        programs: names of programs; none for all that are loaded.
        children: also for spans started inside the block, in every thread that the context is carried to.

    Raises:
        ConfigError: there is no program of that name.
    """

    __slots__ = ("_children", "_programs", "_tokens")

    def __init__(self, *programs: str, children: bool = False) -> None:
        check_names(programs)
        self._programs = programs
        self._children = children
        self._tokens: list[Any] = []  # one may be entered again inside itself

    def __enter__(self) -> Self:
        mask = program_mask(self._programs)
        if mask:
            current = otel.get_current()
            span_id = trace.get_current_span(current).get_span_context().span_id
            outer = cast("tuple[int, int, int]", current.get(MASK_KEY) or (0, 0, 0))
            below, own, own_id = outer
            if self._children:
                below |= mask
            own = mask | (own if own_id == span_id else 0)
            self._tokens.append(otel.attach(otel.set_value(MASK_KEY, (below, own, span_id), current)))
        else:
            self._tokens.append(None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        token = self._tokens.pop()
        if token is not None:
            otel.detach(token)


@overload
def traced(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def traced(
    *programs: str, name: str | None = None, children: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def traced(*args: Any, name: str | None = None, children: bool = False) -> Any:
    """An OpenTelemetry span around a function, with kernel tracing on for it.

    `@traced` enables all loaded programs, `@traced("sched")` the named ones. Works on functions and coroutine
    functions.

    Args:
        args: names of programs, or the function itself.
        name: the span's name; default: the function's qualified name.
        children: also for spans started inside.

    Raises:
        ConfigError: there is no program of that name, or the function is a generator.
    """
    if len(args) == 1 and callable(args[0]):
        return _wrap(args[0], (), name, children=children)
    check_names(args)
    return lambda function: _wrap(function, args, name, children=children)


def _wrap(function: Callable[..., Any], programs: tuple[str, ...], name: str | None, *, children: bool) -> Any:
    span_name = name or str(getattr(function, "__qualname__", type(function).__qualname__))
    tracer = trace.get_tracer("ebpftrace")

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        with tracer.start_as_current_span(span_name), enable(*programs, children=children):
            yield

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            with block():
                return await function(*args, **kwargs)

        return coroutine
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        # between two items the consumer's context is current: it must not be left changed
        raise ConfigError(
            f"@traced cannot wrap the generator {span_name!r}: put `with ebpftrace.enable(...)` around what it does "
            "between two yields"
        )

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with block():
            return function(*args, **kwargs)

    return call
