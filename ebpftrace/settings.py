# SPDX-License-Identifier: Apache-2.0
"""Settings: what `ebpftrace.start()` takes, and the environment variable of each.

A value given in the call wins over the environment, the environment over the default. A bad value in a call is a
`ConfigError`; a bad value in the environment is one warning and the default, because an application must not fail for
a variable that its operator mistyped.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ebpftrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger("ebpftrace.settings")

SAMPLED = "sampled"
"""As `enable`: every program that is loaded, for every sampled span."""
MAX_OFF_CPU_US = 3_600_000_000
MIN_RING_KIB = 4
MAX_RING_KIB = 1 << 20
CONTEXT_HOOKS = ("watcher", "run", "enter", "greenlet")


@dataclass(frozen=True, slots=True)
class Settings:
    """One running library's settings."""

    programs: tuple[str, ...] = ("exec", "sched")
    """Programs to load; EBPFTRACE_PROGRAMS, comma separated. They act only where a context enables them."""

    enable: tuple[str, ...] = ()
    """Programs enabled for every sampled span, not just where `enable()` says; EBPFTRACE_ENABLE, comma separated.
    "sampled" is the word for all that are loaded."""

    breakdown: bool = True
    """Put the kernel time breakdown on every ended span; EBPFTRACE_BREAKDOWN."""

    service_name: str = "kernel"
    """`service.name` of the kernel's spans; EBPFTRACE_SERVICE_NAME."""

    min_off_cpu_us: int = 100
    """A wait shorter than this many microseconds makes no span (the breakdown has it all the same);
    EBPFTRACE_MIN_OFF_CPU_US."""

    exec_roots: tuple[str, ...] = ()
    """Binaries that start a trace of their own, by path or by name; EBPFTRACE_EXEC_ROOTS, comma separated."""

    ring_kib: int = 1024
    """Size of each program's ring buffer, a power of two of KiB; EBPFTRACE_RING_KIB."""

    extras: bool = True
    """Use what only some kernels let a program have, such as fentry: see the programs' pages; EBPFTRACE_EXTRAS."""

    context_hooks: tuple[str, ...] = ("auto",)
    """How to follow contexts over the switches of event loops and greenlets: "auto", "none", or names of hooks;
    EBPFTRACE_CONTEXT_HOOKS, comma separated."""
    otel_context: bool = True
    """Let other readers of OpenTelemetry's context, such as its eBPF profiler, find this process's: OTEP 4719 and 4947;
    EBPFTRACE_OTEL_CONTEXT. Also where kernel tracing cannot be on."""

    output: str = ""
    """Also write all spans, the application's and the kernel's, to this file as OTLP JSON lines; EBPFTRACE_OUTPUT."""

    agent_socket: str = ""
    """An agent's socket, to register there and load nothing here; "" = the usual place, when this process may not load
    BPF programs; "none" = never. EBPFTRACE_AGENT_SOCKET."""

    disabled: bool = False
    """Do nothing at all; EBPFTRACE_DISABLED."""


_DEFAULTS = Settings()


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("it must be true or false")


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "programs": _words,
    "enable": _words,
    "breakdown": _boolean,
    "service_name": str,
    "min_off_cpu_us": int,
    "exec_roots": _words,
    "ring_kib": int,
    "extras": _boolean,
    "context_hooks": _words,
    "otel_context": _boolean,
    "output": str,
    "agent_socket": str,
    "disabled": _boolean,
}


_KINDS: Mapping[type, str] = {bool: "True or False", int: "a whole number", str: "text", tuple: "names"}


def _check(name: str, value: Any) -> None:
    """Raise ValueError with what is right for this setting."""
    kind = type(getattr(_DEFAULTS, name))
    if type(value) is not kind or (kind is tuple and not all(isinstance(word, str) for word in value)):
        raise ValueError(f"it must be {_KINDS[kind]}")
    if name in _CHECKS:
        _CHECKS[name](value)


def _check_programs(names: tuple[str, ...]) -> None:
    from ebpftrace.programs import find  # the catalogue reads files: only for those who name programs

    if not names:
        raise ValueError("name at least one program, or set `disabled`")
    for name in names:
        find(name)


def _check_enable(names: tuple[str, ...]) -> None:
    if SAMPLED in names and names != (SAMPLED,):
        raise ValueError(f"{SAMPLED!r} means all programs that are loaded, and stands alone")
    if names and names != (SAMPLED,):
        _check_programs(names)


def _check_hooks(names: tuple[str, ...]) -> None:
    if names not in (("auto",), ("none",)) and not (names and set(names) <= set(CONTEXT_HOOKS)):
        raise ValueError(f"it must be auto, none, or some of {', '.join(CONTEXT_HOOKS)}")


def _check_off_cpu(microseconds: int) -> None:
    if not 0 <= microseconds <= MAX_OFF_CPU_US:
        raise ValueError(f"it must be from 0 to {MAX_OFF_CPU_US} microseconds")


def _check_ring(kib: int) -> None:
    if not (MIN_RING_KIB <= kib <= MAX_RING_KIB and kib & (kib - 1) == 0):
        raise ValueError(f"it must be a power of two from {MIN_RING_KIB} to {MAX_RING_KIB}")


def _check_service(name: str) -> None:
    if not name:
        raise ValueError("it must not be empty")


def _check_roots(roots: tuple[str, ...]) -> None:
    if any(len(root.encode()) > 63 for root in roots):
        raise ValueError("a path or name may have 63 bytes at most")


_CHECKS: Mapping[str, Callable[[Any], None]] = {
    "programs": _check_programs,
    "enable": _check_enable,
    "context_hooks": _check_hooks,
    "min_off_cpu_us": _check_off_cpu,
    "ring_kib": _check_ring,
    "service_name": _check_service,
    "exec_roots": _check_roots,
}


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"EBPFTRACE_{name.upper()}"


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name, parse in _PARSERS.items():
        text = environment.get(variable(name))
        if text is None:
            continue
        try:
            value = parse(text)
            _check(name, value)
        except ValueError as error:
            logger.warning("%s=%r is ignored: %s", variable(name), text, error)
        else:
            found[name] = value
    return found


def resolve(given: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings: what was given, else the environment, else the defaults.

    Raises:
        ConfigError: a given value is wrong.
    """
    known = {field.name for field in fields(Settings)}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"there is no setting {name!r}; there are: {', '.join(sorted(known))}")
        try:
            _check(name, value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name}={value!r}: {error}") from None
    return Settings(**{**_from_environment(os.environ if environment is None else environment), **given})
