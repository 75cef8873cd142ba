# SPDX-License-Identifier: Apache-2.0
"""Starting in a program that knows nothing of ebpftrace (`ebpftrace run`).

The program's Python imports our sitecustomize, which calls `install()`: from then on the first import of
`opentelemetry.trace` starts the library. A Python process that never touches OpenTelemetry loads nothing.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

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
    """Have the first span of a program that set no provider set one up, from the OTEL_* variables.

    The application's own provider still wins when it comes later: ours is then replaced, where OpenTelemetry would
    refuse a second one.
    """
    from opentelemetry import trace

    original = trace.ProxyTracer._tracer.fget  # type: ignore[attr-defined]
    set_provider = trace._set_tracer_provider
    ours: list[Any] = []

    def tracer(self: trace.ProxyTracer) -> trace.Tracer:
        if trace._TRACER_PROVIDER is None and not ours:
            ours.append(None)  # setting up may itself make spans
            ours[0] = _make_provider()
        found: trace.Tracer = original(self)
        return found

    def set_tracer_provider(provider: Any, log: bool) -> None:  # noqa: FBT001  (OpenTelemetry's)
        if ours and ours[0] is not None and trace._TRACER_PROVIDER is ours[0] and provider is not ours[0]:
            trace._TRACER_PROVIDER_SET_ONCE._done = False
            replaced: Any = ours[0]
            ours[0] = None
            set_provider(provider, log)
            replaced.shutdown()
            return
        set_provider(provider, log)

    trace.ProxyTracer._tracer = property(tracer)  # type: ignore[assignment,method-assign]
    trace._set_tracer_provider = set_tracer_provider  # type: ignore[assignment]


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
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _LoaderThen(spec.loader, self._action)
                return spec
        return None


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
