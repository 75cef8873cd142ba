# SPDX-License-Identifier: Apache-2.0
"""Starting in a program that knows nothing of ebpftrace (`ebpftrace run`).

The program's Python imports our sitecustomize, which calls `install()`: from then on the first import of
`opentelemetry.trace` starts the library. A Python process that never touches OpenTelemetry loads nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from opentelemetry import trace

logger = logging.getLogger("ebpftrace.runtime")

_SWITCH = "EBPFTRACE_RUN"
_TRIGGER = "opentelemetry.trace"
_installed = False


def prepare(environment: dict[str, str]) -> None:
    """Change a child's environment so that its Python calls `install()` at start-up."""
    site = str(Path(__file__).parent / "site")
    before = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{site}{os.pathsep}{before}" if before else site
    environment[_SWITCH] = "1"


def install() -> None:
    """Start the library when OpenTelemetry is imported, or now if it is already; idempotent, never raises.

    Also the entry point that `opentelemetry-instrument` calls, which hides our sitecustomize behind its own; does
    nothing in a program that was not started by `ebpftrace run`.
    """
    global _installed  # noqa: PLW0603
    if _installed or os.environ.get(_SWITCH) != "1":
        return
    _installed = True
    if _TRIGGER in sys.modules:
        _start()
    else:
        sys.meta_path.insert(0, _AfterImport(_TRIGGER, _start))


def _start() -> None:
    try:
        import ebpftrace

        _configure_sdk_when_missing()
        ebpftrace.start()
    except Exception:
        logger.exception("ebpftrace could not start; the program goes on without it")


def _configure_sdk_when_missing() -> None:
    """Have the first span of a program that set no provider set one up, from the OTEL_* variables."""
    from opentelemetry import trace

    stand_in = _StandIn(trace.ProxyTracer._tracer.fget, trace._set_tracer_provider)  # type: ignore[attr-defined]
    trace.ProxyTracer._tracer = property(stand_in.tracer)  # type: ignore[assignment,method-assign]
    trace._set_tracer_provider = stand_in.set_tracer_provider  # type: ignore[assignment]


class _StandIn:
    """The provider of a program that set none, until it sets one after all.

    OpenTelemetry takes one provider, the first. So that ours is never in the way of the application's, which may come
    after some library made a span, it is replaced then, and what still holds on to it is led to the new one.
    """

    def __init__(
        self, tracer_of: Callable[[trace.ProxyTracer], trace.Tracer], set_provider: Callable[[Any, bool], None]
    ) -> None:
        self._tracer_of = tracer_of
        self._set_provider = set_provider
        self._provider: Any = None
        self._asked = False
        # The thread that sets the SDK up may make spans by it, and must not wait for itself; the others must wait:
        # what they start meanwhile would be lost, and its children be traces of their own.
        self._lock = threading.RLock()
        self._proxies: weakref.WeakSet[trace.ProxyTracer] = weakref.WeakSet()

    def tracer(self, proxy: trace.ProxyTracer) -> trace.Tracer:
        """`ProxyTracer._tracer`: the real tracer behind a proxy."""
        from opentelemetry import trace

        if trace._TRACER_PROVIDER is None or self._provider is not None:
            with self._lock:
                if trace._TRACER_PROVIDER is None and not self._asked:
                    self._asked = True
                    self._provider = _make_provider()
                if self._provider is not None:
                    self._proxies.add(proxy)
        return self._tracer_of(proxy)

    def set_tracer_provider(self, provider: Any, log: bool) -> None:  # noqa: FBT001  (OpenTelemetry's signature)
        """`trace._set_tracer_provider`."""
        from opentelemetry import trace

        with self._lock:
            ours = self._provider
            if ours is None or trace._TRACER_PROVIDER is not ours or provider is ours:
                self._set_provider(provider, log)
                return
            self._provider = None
            trace._TRACER_PROVIDER_SET_ONCE._done = False
            self._set_provider(provider, log)
            for proxy in list(self._proxies):
                proxy._real_tracer = None
        _lead_on(ours, provider)


def _lead_on(old: Any, new: Any) -> None:
    """Spans of tracers that hold on to `old` go to the processors of `new`; those of `old` end."""
    processor = getattr(new, "_active_span_processor", None)
    active = getattr(old, "_active_span_processor", None)
    processors = getattr(active, "_span_processors", ())
    if processor is not None and active is not None:
        active._span_processors = (processor,)
    # in the background: an exporter whose backend is down takes its time, and this is the application's own call
    threading.Thread(target=_shut_down, args=(processors,), name="ebpftrace-stand-in", daemon=True).start()


def _shut_down(processors: Sequence[Any]) -> None:
    for each in processors:
        each.shutdown()


def _make_provider() -> Any:
    try:
        from ebpftrace.settings import variable
        from ebpftrace.spans.export import configure_sdk

        return configure_sdk(default="none" if os.environ.get(variable("output")) else "otlp")
    except Exception:
        logger.exception("no OpenTelemetry SDK could be set up for this program")
        return None


class _AfterImport(MetaPathFinder):
    """Calls `action` once, after `name` was imported, and is gone."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self._name = name
        self._action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _LoaderThen(spec.loader, self._imported)
                return spec
        return None

    def _imported(self) -> None:
        if self in sys.meta_path:  # a mere look-up, importlib.util.find_spec(), has not come this far
            sys.meta_path.remove(self)
            self._action()


class _LoaderThen(Loader):
    def __init__(self, loader: Loader, action: Callable[[], None]) -> None:
        self._loader = loader
        self._action = action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = self._loader  # type: ignore[union-attr]
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._action()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
