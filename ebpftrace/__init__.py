# SPDX-License-Identifier: Apache-2.0
"""Kernel spans and kernel time inside your OpenTelemetry traces.

    import ebpftrace

    ebpftrace.start()                       # once, at start-up

    @ebpftrace.traced                       # a span, with kernel tracing on for it
    def handler(): ...

    with tracer.start_as_current_span("charge"):
        with ebpftrace.enable("sched"):     # kernel tracing on for the current span
            ...
        ebpftrace.trace_socket(sock)        # what the kernel does with this socket, too

Importing this costs next to nothing: what is needed is imported by what is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ebpftrace._version import version as __version__

if TYPE_CHECKING:
    from ebpftrace.context.enable import enable, traced
    from ebpftrace.context.sockets import trace_socket
    from ebpftrace.runtime.session import Session

__all__ = ["Session", "__version__", "enable", "start", "stats", "stop", "trace_socket", "traced"]


def start(
    *,
    programs: tuple[str, ...] | list[str] | None = None,
    enable: tuple[str, ...] | list[str] | Literal["sampled"] | None = None,
    breakdown: bool | None = None,
    service_name: str | None = None,
    min_off_cpu_us: int | None = None,
    exec_roots: tuple[str, ...] | list[str] | None = None,
    ring_kib: int | None = None,
    extras: bool | None = None,
    context_hooks: tuple[str, ...] | list[str] | None = None,
    otel_context: bool | None = None,
    output: str | None = None,
    agent_socket: str | None = None,
    disabled: bool | None = None,
) -> Session:
    """Load the kernel programs, publish every thread's current span, start the background reader.

    Idempotent: a second call returns the running session; with other settings it says so in the log and changes
    nothing. Where the kernel or the privileges do not allow it, one log line says what is missing and the application
    goes on untraced: `session.active` and `session.reason` tell.

    Args:
        programs: programs to load (default: all); they act only where a span enables them.
        enable: programs enabled for every sampled span; "sampled" for all that are loaded.
        breakdown: put `ebpftrace.time.*` on every ended span (default: yes).
        service_name: `service.name` of the kernel's spans (default: "kernel").
        min_off_cpu_us: a wait shorter than this makes no span of its own (default: 100).
        exec_roots: binaries that start a trace of their own, by path or name.
        ring_kib: size of each program's ring buffer, a power of two (default: 1024).
        extras: let programs use hooks that only some kernels have (default: yes).
        context_hooks: how to follow the current span over the switches of event loops and greenlets: ["auto"]
            (default), ["none"], or names of hooks.
        otel_context: let other readers of OpenTelemetry's context find this process's (default: yes).
        output: also write all spans, the application's and the kernel's, to this file as OTLP JSON lines.
        agent_socket: an agent's socket, to have its programs act here and load none (default: the usual place, when
            this process may not load any; "none": never).
        disabled: do nothing.

    Each has an environment variable EBPFTRACE_<NAME>, which a value given here overrides.

    Raises:
        ConfigError: a setting is wrong, or names a program that does not exist.
    """
    from ebpftrace.runtime import session

    given: dict[str, Any] = {
        "programs": None if programs is None else _names("programs", programs),
        "enable": ("sampled",) if enable == "sampled" else None if enable is None else _names("enable", enable),
        "breakdown": breakdown,
        "service_name": service_name,
        "min_off_cpu_us": min_off_cpu_us,
        "exec_roots": None if exec_roots is None else _names("exec_roots", exec_roots),
        "ring_kib": ring_kib,
        "extras": extras,
        "context_hooks": None if context_hooks is None else _names("context_hooks", context_hooks),
        "otel_context": otel_context,
        "output": output,
        "agent_socket": agent_socket,
        "disabled": disabled,
    }
    return session.start(**{name: value for name, value in given.items() if value is not None})


def _names(setting: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        from ebpftrace.errors import ConfigError

        raise ConfigError(f"{setting}={value!r}: give a list of names: {setting}=[{value!r}]")
    return tuple(value)


def stop() -> None:
    """Detach everything, bring in the last kernel spans, publish no more. Idempotent; also done at exit."""
    from ebpftrace.runtime import session

    session.stop()


def stats() -> dict[str, Any]:
    """Return what was read, made and lost since `start()`, by program and reason; also after `stop()`."""
    from ebpftrace.runtime import session

    latest = session.latest()
    return latest.stats() if latest is not None else {"active": False, "reason": "start() was not called"}


def __getattr__(name: str) -> Any:
    """Import the public names that need OpenTelemetry when they are first used."""
    if name in ("enable", "traced"):
        from ebpftrace.context import enable as module

        globals()["enable"], globals()["traced"] = module.enable, module.traced
        return globals()[name]
    if name == "trace_socket":
        from ebpftrace.context.sockets import trace_socket

        globals()["trace_socket"] = trace_socket
        return trace_socket
    if name == "Session":
        from ebpftrace.runtime.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
