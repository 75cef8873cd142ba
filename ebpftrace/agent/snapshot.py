# SPDX-License-Identifier: Apache-2.0
"""What a running agent says about itself: one consistent look, made by the daemon, read by metrics and health checks.

All counters only grow while the agent lives, also across reloads. Times named `_at` are epoch seconds, 0.0 = never.
A mapping reason → count may leave out reasons that have not happened; those of the tuples below are then reported as 0,
so that a graph of them exists before the first loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

UNDECODED_REASONS = ("short", "unknown_type", "no_trace_id", "skipped", "failed")
"""Why a record that was read made no span."""

KERNEL_DROP_REASONS = ("ring_full", "map_full", "limit")
"""Why a record was lost before it could be read."""

EXPORT_DROP_REASONS = ("queue_full", "expired", "invalid", "closed")
"""Why a span is not sent: no room, not taken for too long, no ids, the agent ended."""

REFUSED_REASONS = ("policy", "quota", "full", "rate", "busy", "late", "protocol", "version", "gone", "failed")
"""Why an application was not registered: docs/reference/registration.md."""

FORGOTTEN_REASONS = ("closed", "exited", "exec", "replaced", "protocol", "ended")
"""Why one is registered no more."""

ProgramState = Literal["running", "partial", "failed"]
"""All hooks attached; some; none, or not loaded at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RingSnapshot:
    """One ring buffer.

    Args:
        name: of the map.
        size_bytes: of its data area.
        unread_bytes: submitted and not yet read; None where it cannot be told.
    """

    name: str
    size_bytes: int
    unread_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSnapshot:
    """One BPF function, as the kernel counts it while `kernel.bpf_stats_enabled` is 1.

    Args:
        name: of the function.
        hook: where it is attached ("tp_btf/sched_switch").
        attached: is it?
        run_count: how often it ran; None when the kernel did not count.
        run_time_ns: how long that took, in all.
    """

    name: str
    hook: str
    attached: bool = True
    run_count: int | None = None
    run_time_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSnapshot:
    """One program.

    Args:
        name: of the program.
        state: how much of it runs.
        error: why it is not "running"; "" when it is.
        hooks_attached: number of its functions that are attached.
        hooks_failed: number of those that could not be.
        records: read from its ring buffers.
        spans: made of them.
        undecoded: records that made no span, by reason.
        dropped: lost in the kernel, by reason; None when its object does not count them.
        rings: its ring buffers.
        functions: its BPF functions, if looked at.
    """

    name: str
    state: ProgramState = "running"
    error: str = ""
    hooks_attached: int = 0
    hooks_failed: int = 0
    records: int = 0
    spans: int = 0
    undecoded: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] | None = None
    rings: tuple[RingSnapshot, ...] = ()
    functions: tuple[FunctionSnapshot, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSnapshot:
    """The way out. Spans: emitted = exported + failed + dropped + queued.

    Args:
        exporter: what it is ("otlp http/protobuf", "console", "none").
        emitted: spans handed to it.
        exported: spans that the receiver took.
        failed: spans that the receiver refused, or that were given up on.
        dropped: spans that were never sent, by reason.
        queued_spans: waiting.
        queued_bytes: waiting.
        requests: made, retries included.
        retries: requests that were repeats.
        failing_since: epoch seconds of the first failure after the last success; 0.0 while exporting works.
        last_error: what was wrong the last time; "" = nothing yet.
        last_error_at: epoch seconds of it.
    """

    exporter: str = ""
    emitted: int = 0
    exported: int = 0
    failed: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    queued_spans: int = 0
    queued_bytes: int = 0
    requests: int = 0
    retries: int = 0
    failing_since: float = 0.0
    last_error: str = ""
    last_error_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderSnapshot:
    """The thread that reads the ring buffers.

    Args:
        alive: does it run?
        last_round_at: epoch seconds of when it last looked into the rings; it looks at least once a second.
        batches: passed on.
        errors: batches that could not be.
        lost_records: records in those.
    """

    alive: bool = True
    last_round_at: float = 0.0
    batches: int = 0
    errors: int = 0
    lost_records: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMapSnapshot:
    """One map of cgroup ids that the agent keeps filled.

    Args:
        program: whose map.
        entries: in it now.
        added: cgroups put into it.
        removed: cgroups taken out of it.
        failed: cgroups that could not be put in, or taken out (map full, cgroup gone).
        walks: times the whole tree was looked at.
    """

    program: str
    entries: int = 0
    added: int = 0
    removed: int = 0
    failed: int = 0
    walks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySnapshot:
    """Applications that have their context table from the agent.

    Args:
        processes: registered now.
        connections: open, those that have not said anything included.
        tables: that count against the quotas.
        retired: of these, those of processes that are registered no more.
        registered: registrations so far.
        refused: those refused, by reason.
        forgotten: those that ended, by reason.
        last_round_at: when its thread last looked, epoch seconds; 0 = not yet.
    """

    processes: int = 0
    connections: int = 0
    tables: int = 0
    retired: int = 0
    registered: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    forgotten: Mapping[str, int] = field(default_factory=dict)
    last_round_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSnapshot:
    """The whole agent.

    Args:
        started_at: epoch seconds.
        config_loads: configurations put into force, the first included.
        config_failures: configurations that were refused at a reload; what was wrong stayed as it had been.
        config_loaded_at: epoch seconds of the last one put into force.
        programs: in the order of the command line.
        export: the way out.
        reader: the reading thread.
        cgroup_maps: those that are kept filled.
        registry: registered applications; None = it takes none.
        stopping: the agent is shutting down.
    """

    started_at: float
    config_loads: int = 1
    config_failures: int = 0
    config_loaded_at: float = 0.0
    programs: tuple[ProgramSnapshot, ...] = ()
    export: ExportSnapshot = field(default_factory=ExportSnapshot)
    reader: ReaderSnapshot = field(default_factory=ReaderSnapshot)
    cgroup_maps: tuple[CgroupMapSnapshot, ...] = ()
    registry: RegistrySnapshot | None = None
    stopping: bool = False
