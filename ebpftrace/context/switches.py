# SPDX-License-Identifier: Apache-2.0
"""Which hooks tell that another context has taken over a thread, chosen and tried at start.

OpenTelemetry sees its own attach and detach only. A task's step, a callback of an event loop, a greenlet bring another
`contextvars.Context` with them: without a hook what is published is stale from there on, and BPF programs find none.
With a hook it is right at once. So a hook that does not work here is taken off again, and costs nothing but spans.
"""

from __future__ import annotations

import contextvars
import logging
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext
from opentelemetry.trace.propagation import _SPAN_KEY

from ebpftrace.context import _publisher
from ebpftrace.settings import CONTEXT_HOOKS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    Variable = contextvars.ContextVar[Any]

logger = logging.getLogger("ebpftrace.context")

_USE = {
    "set": "code that sets OpenTelemetry's variable itself: asgiref",
    "watcher": "asyncio, uvloop, executors",
    "run": "asyncio, executors",
    "enter": "uvloop, eager tasks",
    "greenlet": "gevent, eventlet",
}


@dataclass(frozen=True, slots=True)
class Hook:
    """One way to learn of switches.

    Args:
        name: what the setting calls it.
        on: it is in place, and did its work when it was tried.
        detail: what it is for when it is on, else why it is not.
        wanted: it was chosen; one that was not is no failure.
    """

    name: str
    on: bool
    detail: str
    wanted: bool = True


_NOT_OPENTELEMETRYS = "the runtime context is not OpenTelemetry's own"

_hooks: tuple[Hook, ...] = ()  # "set" and all of CONTEXT_HOOKS, or none while the library does not run
_told: set[str] = set()


def hooks() -> tuple[Hook, ...]:
    """Return how each hook stands; nothing while the library does not run."""
    return _hooks


def stats() -> dict[str, Any]:
    """Return how each hook stands, in words, and how many switches none of them told of."""
    found = {hook.name: "on" if hook.on else hook.detail for hook in _hooks}
    return {"hooks": found, "missed_switches": _publisher.missed_switches()}


def follow(variable: Variable, wanted: Sequence[str], publish: Callable[[], None]) -> None:
    """Install the hooks for the variable that holds OpenTelemetry's context, and try each of them; idempotent.

    Args:
        variable: what holds the context.
        wanted: names of hooks, "auto" or "none".
        publish: publishes what the calling thread has current.
    """
    global _hooks  # noqa: PLW0603  (replaced whole, so that readers need no lock)
    if _hooks or not _publisher.armed():
        return
    found = {"set": _follow_variable(variable)}

    def add(*names: str) -> None:
        found.update({name: _install(name) for name in names})
        for name in names:
            publish()
            found[name] = _try(name, variable) if found[name].on else found[name]

    if found["set"].on:
        add(*_chosen(wanted))
        if "auto" in wanted and "watcher" in found and not found["watcher"].on:  # the next safe mode
            add("run", "enter")
    unused = "not needed here, or not asked for" if found["set"].on else "nothing is published"
    _hooks = tuple(found.get(name) or Hook(name, False, unused, wanted=False) for name in ("set", *CONTEXT_HOOKS))


def guard(variable: Variable | None) -> None:
    """Publish nothing where somebody sets the variable itself: what a vendor's runtime context makes of it, who knows.

    No hooks: only Python code could ask such a runtime context, and none may run in the middle of a switch.

    Args:
        variable: None when it keeps its contexts in a way of its own; nobody is told of what is changed there.
    """
    global _hooks  # noqa: PLW0603
    if _hooks or not _publisher.armed():
        return
    first = Hook("set", False, _NOT_OPENTELEMETRYS)
    if variable is not None:
        first = _follow_variable(variable, guarded=True)
    _hooks = (first, *(Hook(name, False, _NOT_OPENTELEMETRYS) for name in CONTEXT_HOOKS))


def _follow_variable(variable: Variable, *, guarded: bool = False) -> Hook:
    """See who sets the variable past OpenTelemetry; where that fails, no stamp would show it: publish nothing."""
    try:
        _publisher.follow(variable, guarded)
        _check(_set_guarded(variable) if guarded else _set(variable))
    except Exception as error:  # noqa: BLE001  (whatever it is)
        _publisher.silence(True)
        if "set" not in _told:
            _told.add("set")
            logger.warning("no context is published, so no span has kernel spans: no hook on ContextVar.set: %s", error)
        return Hook("set", False, f"nothing is published: {error}")
    return Hook("set", True, _USE["set"])


def leave() -> None:
    """Take all hooks off; whatever is published then is stale after the next switch."""
    global _hooks  # noqa: PLW0603
    _publisher.leave()
    _publisher.silence(False)
    _hooks = ()


def _chosen(wanted: Sequence[str]) -> tuple[str, ...]:
    if "none" in wanted:
        return ()
    if "auto" not in wanted:
        return tuple(wanted)
    return ("watcher", "greenlet") if sys.version_info >= (3, 14) else ("run", "enter", "greenlet")


def _install(name: str) -> Hook:
    """Put a hook in place, if that can be."""
    try:
        _publisher.hook(name)
    except RuntimeError as error:
        _tell(name, error)
        return Hook(name, False, str(error))
    return Hook(name, True, _USE[name])


def _tell(name: str, error: Exception) -> None:
    if name not in _told:
        _told.add(name)
        logger.warning(
            "contexts are not followed by the hook %r, so code after some switches has no kernel spans: %s", name, error
        )


# --- trying them -----------------------------------------------------------------------------------------------------


def _try(name: str, variable: Variable) -> Hook:
    """See a hook work in the calling thread; take it off when it does not."""
    before = _publisher.current()
    try:
        seen = _TRIALS[name](variable)
        if name == "enter" and seen is not None and seen[1] is None:  # unknown, not wrong; uvloop is another matter
            return Hook(name, True, "uvloop; eager tasks: not on this build")
        _check(seen)
        if _publisher.current() != before:
            raise RuntimeError("the context before was not published again")  # noqa: TRY301
    except Exception as error:  # noqa: BLE001
        _publisher.unhook(name)
        _tell(name, error)
        return Hook(name, False, f"self-test failed: {error}")
    return Hook(name, True, _USE[name])


def _check(seen: tuple[bytes, bytes | None] | None) -> None:
    """Compare what was published with what ought to be; None is nothing to compare."""
    if seen is not None and seen[0] != seen[1]:
        raise RuntimeError("another context ran than was published")


def _probe() -> tuple[Context, bytes]:
    """A context with a span that no program acts for, since it is not sampled, and its ids."""
    ids = os.urandom(24)
    span = SpanContext(int.from_bytes(ids[:16], "big"), int.from_bytes(ids[16:], "big"), is_remote=False)
    return Context({_SPAN_KEY: NonRecordingSpan(span)}), ids


def _inner(variable: Variable) -> tuple[contextvars.Context, bytes]:
    inner = contextvars.Context()
    probe, ids = _probe()
    inner.run(variable.set, probe)
    return inner, ids


def _set(variable: Variable) -> tuple[bytes, bytes | None]:
    probe, ids = _probe()

    def seen() -> bytes | None:
        variable.set(probe)
        return _publisher.current()

    return ids, contextvars.Context().run(seen)


def _set_guarded(variable: Variable) -> tuple[bytes, bytes | None]:
    probe, _ = _probe()
    runtime = _publisher.RuntimeContext(None, contextvars.ContextVar("probe"))

    def seen() -> bytes | None:
        runtime.attach(probe)
        variable.set(probe)
        return _publisher.current()

    return b"", contextvars.Context().run(seen) or b""


def _run(variable: Variable) -> tuple[bytes, bytes | None]:
    inner, ids = _inner(variable)
    return ids, inner.run(_publisher.current)


class _Loop:
    """As much of an event loop as a task needs that ends in its first step."""

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True


def _eager(variable: Variable) -> tuple[bytes, bytes | None] | None:
    """An eager task's first step.

    There are none before 3.12, nor before somebody imported asyncio; from 3.14 on they need a loop that really runs.
    """
    asyncio: Any = sys.modules.get("asyncio")
    if not hasattr(asyncio, "Task") or not (3, 12) <= sys.version_info < (3, 14):
        return None

    async def seen() -> bytes | None:
        return _publisher.current()

    inner, ids = _inner(variable)
    make = cast("Callable[..., Any]", asyncio.Task)
    coroutine: Coroutine[Any, Any, bytes | None] = seen()
    return ids, make(coroutine, loop=_Loop(), context=inner, eager_start=True).result()


def _greenlet(variable: Variable) -> tuple[bytes, bytes | None] | None:
    module: Any = sys.modules.get("greenlet")
    if module is None or not hasattr(module, "greenlet"):
        return None
    inner, ids = _inner(variable)
    switched = module.greenlet(_publisher.current)
    switched.gr_context = inner
    return ids, switched.switch()


_TRIALS: dict[str, Callable[[Variable], tuple[bytes, bytes | None] | None]] = {
    "watcher": _run,
    "run": _run,
    "enter": _eager,
    "greenlet": _greenlet,
}
