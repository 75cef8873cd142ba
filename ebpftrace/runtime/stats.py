# SPDX-License-Identifier: Apache-2.0
"""What a session has to say about itself, in numbers."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from ebpftrace.runtime.session import Session


def collect(session: Session) -> dict[str, Any]:
    """Return the counters of every part of `session`, as plain JSON-able values."""
    return {
        "active": session.active,
        "reason": session.reason,
        "by": _by(session),
        "agent": _agent(session),
        "programs": _programs(session),
        "spans": _spans(session),
        "reader": _reader(session),
        "sockets": _sockets(),
        "breakdown": _sum(session._binding.breakdown_stats()) if session._binding is not None else {},
    } | collect_publishing(session)


def collect_publishing(session: Session) -> dict[str, Any]:
    """Return the counters of what goes on without kernel programs."""
    return {"publisher": _publisher(), "context_hooks": _context_hooks(), "otel_context": _otel_context(session)}


def _by(session: Session) -> str:
    """Whose programs act: this process's own, or the agent's."""
    if not session.active:
        return ""
    return "agent" if _agent(session) else "process"


def _agent(session: Session) -> dict[str, Any]:
    stats = getattr(session._kernel, "stats", None)  # only of the agent's side; not imported where there is none
    return stats() if stats is not None else {}


def _programs(session: Session) -> dict[str, Any]:
    kernel = session._kernel
    if kernel is None:
        return {}
    counted = session._pipeline.stats() if session._pipeline is not None else {}
    found: dict[str, Any] = {}
    for program in kernel.programs:
        found[program.name] = {
            "records": counted[program.name].records if program.name in counted else 0,
            "undecoded": sum(counted[program.name].undecoded.values()) if program.name in counted else 0,
            "dropped": program.drops(),
        }
        running = program.running()
        if running is not None:
            found[program.name]["running"] = running
    return found | {name: {"failed": str(error)} for name, error in kernel.failed.items()}


def _spans(session: Session) -> dict[str, int]:
    binding = session._binding
    return _sum(msgspec.structs.asdict(stats) for stats in binding.stats()) if binding is not None else {}


def _reader(session: Session) -> dict[str, int]:
    reader = session._reader
    return (
        {"batches": reader.batches, "errors": reader.errors, "lost_records": reader.lost_records}
        if reader is not None
        else {}
    )


def _publisher() -> dict[str, int]:
    try:
        from ebpftrace.context import _publisher as publisher
    except ImportError:  # not built: start() has said so
        return {}
    return publisher.counters()


def _context_hooks() -> dict[str, Any]:
    switches = sys.modules.get("ebpftrace.context.switches")
    return switches.stats() if switches is not None else {}


def _otel_context(session: Session) -> dict[str, Any]:
    context = session._context
    if context is None:
        return {"published": False, "reason": session.reason or "the setting `otel_context` is off"}
    return context.stats()


def _sockets() -> dict[str, int]:
    sockets = sys.modules.get("ebpftrace.context.sockets")
    return sockets.counters() if sockets is not None else {}


def _sum(counters: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counters:
        for name, count in each.items():
            total[name] += count
    return dict(total)
