# SPDX-License-Identifier: Apache-2.0
"""The agent's counters as Prometheus metrics, made at each scrape from one snapshot.

Names, labels and units are in docs/reference/metrics.md. Labels are names of programs, maps, functions and reasons
only: their number does not grow with what is traced.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ebpftrace._version import version
from ebpftrace.agent.health import judge
from ebpftrace.agent.snapshot import (
    EXPORT_DROP_REASONS,
    FORGOTTEN_REASONS,
    KERNEL_DROP_REASONS,
    REFUSED_REASONS,
    UNDECODED_REASONS,
    RegistrySnapshot,
)
from ebpftrace.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ebpftrace.agent.snapshot import AgentSnapshot, ProgramSnapshot

    _Row = tuple[Sequence[str], float]

try:
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
    from prometheus_client.exposition import choose_encoder
except ImportError as error:
    raise UnsupportedError(
        "the metrics endpoint", str(error), "pip install 'ebpftrace[agent]', or --listen none does without"
    ) from error

_STATES = ("running", "partial", "failed")
_NS = 1e-9


class AgentCollector:
    """Turns a snapshot into metric families; a registry calls `collect()` for each scrape.

    Args:
        take: makes the snapshot.
        now: the time, epoch seconds.
    """

    def __init__(self, take: Callable[[], AgentSnapshot], *, now: Callable[[], float] = time.time) -> None:
        self._take = take
        self._now = now

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not take a snapshot."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        snapshot = self._take()
        yield from _agent(snapshot, self._now())
        yield from _programs(snapshot.programs)
        yield from _rings(snapshot.programs)
        yield from _functions(snapshot.programs)
        yield from _reader(snapshot)
        yield from _export(snapshot)
        yield from _cgroups(snapshot)
        yield from _registry(snapshot.registry or RegistrySnapshot())


def make_registry(take: Callable[[], AgentSnapshot]) -> CollectorRegistry:
    """Return a registry with the agent's metrics and those of its process (`process_*`: CPU, memory, descriptors)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(AgentCollector(take))
    ProcessCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the metrics in the format that the scraper's Accept header prefers, and that format's content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


# --- families


def _counter(name: str, text: str, labels: Sequence[str], rows: Iterable[_Row]) -> Metric:
    return _filled(CounterMetricFamily(f"ebpftrace_{name}", text, labels=labels), rows)


def _gauge(name: str, text: str, labels: Sequence[str], rows: Iterable[_Row]) -> Metric:
    return _filled(GaugeMetricFamily(f"ebpftrace_{name}", text, labels=labels), rows)


def _filled(family: Any, rows: Iterable[_Row]) -> Metric:
    for labels, value in rows:
        family.add_metric(labels, value)
    filled: Metric = family
    return filled


def _reasons(counts: Mapping[str, int], known: Sequence[str]) -> Mapping[str, int]:
    """Known reasons from 0 on, so that a rate can be told from the first loss on."""
    return dict.fromkeys(known, 0) | dict(counts)


def _agent(snapshot: AgentSnapshot, now: float) -> Iterator[Metric]:
    yield InfoMetricFamily("ebpftrace_build", "Version of the agent.", value={"version": version})
    yield _gauge("start_time_seconds", "When the agent started, epoch.", (), [((), snapshot.started_at)])
    health = judge(snapshot, now)
    yield _gauge("healthy", "What /healthz says: 1 = kernel spans are made and arrive.", (), [((), health.healthy)])
    yield _counter("config_loads", "Configurations put into force.", (), [((), snapshot.config_loads)])
    failures = [((), snapshot.config_failures)]
    yield _counter("config_load_failures", "Reloads that were refused, in part at least.", (), failures)
    yield _gauge(
        "config_last_load_timestamp_seconds", "When the one in force was loaded, epoch.", (),
        [((), snapshot.config_loaded_at)],
    )  # fmt: skip


def _programs(programs: Sequence[ProgramSnapshot]) -> Iterator[Metric]:
    yield _gauge(
        "program_state", "1 for the state that the program is in.", ("program", "state"),
        [((p.name, state), float(p.state == state)) for p in programs for state in _STATES],
    )  # fmt: skip
    hooks = [((p.name, "attached"), p.hooks_attached) for p in programs]
    hooks += [((p.name, "failed"), p.hooks_failed) for p in programs]
    yield _gauge("program_hooks", "Functions of a program by whether they are attached.", ("program", "state"), hooks)
    yield _counter(
        "records", "Records read from ring buffers.", ("program",), [((p.name,), p.records) for p in programs]
    )
    yield _counter("spans", "Spans made of records.", ("program",), [((p.name,), p.spans) for p in programs])
    undecoded = [
        ((p.name, reason), n) for p in programs for reason, n in _reasons(p.undecoded, UNDECODED_REASONS).items()
    ]
    yield _counter("undecoded_records", "Records that made no span.", ("program", "reason"), undecoded)
    dropped = [
        ((p.name, reason), count)
        for p in programs
        if p.dropped is not None
        for reason, count in _reasons(p.dropped, KERNEL_DROP_REASONS).items()
    ]
    yield _counter("dropped_records", "Records lost in the kernel.", ("program", "reason"), dropped)


def _rings(programs: Sequence[ProgramSnapshot]) -> Iterator[Metric]:
    rings = [((p.name, ring.name), ring) for p in programs for ring in p.rings]
    labels = ("program", "ring")
    yield _gauge("ring_size_bytes", "Room in a ring buffer.", labels, [(key, ring.size_bytes) for key, ring in rings])
    unread = [(key, ring.unread_bytes) for key, ring in rings if ring.unread_bytes is not None]
    yield _gauge("ring_unread_bytes", "Submitted and not yet read.", labels, unread)


def _functions(programs: Sequence[ProgramSnapshot]) -> Iterator[Metric]:
    functions = [((p.name, each.name, each.hook), each) for p in programs for each in p.functions]
    labels = ("program", "function", "hook")
    yield _gauge("function_attached", "1 when it is attached.", labels, [(k, float(f.attached)) for k, f in functions])
    runs = [(k, f.run_count) for k, f in functions if f.run_count is not None]
    yield _counter("function_runs", "Runs of a BPF function, while kernel.bpf_stats_enabled is 1.", labels, runs)
    times = [(k, f.run_time_ns * _NS) for k, f in functions if f.run_time_ns is not None]
    yield _counter("function_run_seconds", "Time in a BPF function, while it is counted.", labels, times)


def _reader(snapshot: AgentSnapshot) -> Iterator[Metric]:
    reader = snapshot.reader
    yield _gauge("reader_alive", "1 while the thread that reads ring buffers runs.", (), [((), float(reader.alive))])
    yield _gauge(
        "reader_last_round_timestamp_seconds", "When it last looked into them, epoch.", (),
        [((), reader.last_round_at)],
    )  # fmt: skip
    yield _counter("reader_batches", "Batches of records passed on.", (), [((), reader.batches)])
    yield _counter("reader_errors", "Batches that could not be passed on.", (), [((), reader.errors)])
    yield _counter("reader_lost_records", "Records in those.", (), [((), reader.lost_records)])


def _export(snapshot: AgentSnapshot) -> Iterator[Metric]:
    export = snapshot.export
    yield InfoMetricFamily("ebpftrace_export", "Where spans go.", value={"exporter": export.exporter or "none"})
    yield _counter("export_emitted_spans", "Spans handed to the exporter.", (), [((), export.emitted)])
    yield _counter("export_exported_spans", "Spans that the receiver took.", (), [((), export.exported)])
    yield _counter("export_failed_spans", "Spans refused or given up on.", (), [((), export.failed)])
    dropped = [((reason,), count) for reason, count in _reasons(export.dropped, EXPORT_DROP_REASONS).items()]
    yield _counter("export_dropped_spans", "Spans that were never sent.", ("reason",), dropped)
    yield _gauge("export_queue_spans", "Spans that wait.", (), [((), export.queued_spans)])
    yield _gauge("export_queue_bytes", "Bytes that wait.", (), [((), export.queued_bytes)])
    yield _counter("export_requests", "Requests made, repeats included.", (), [((), export.requests)])
    yield _counter("export_retries", "Requests that were repeats.", (), [((), export.retries)])
    yield _gauge(
        "export_failing_since_timestamp_seconds", "When exporting began to fail, epoch; 0 = it works.", (),
        [((), export.failing_since)],
    )  # fmt: skip
    yield _gauge(
        "export_last_error_timestamp_seconds", "When it last failed, epoch; 0 = never.", (),
        [((), export.last_error_at)],
    )  # fmt: skip


def _cgroups(snapshot: AgentSnapshot) -> Iterator[Metric]:
    maps = snapshot.cgroup_maps
    yield _gauge("cgroup_map_entries", "Cgroups in a map.", ("program",), [((m.program,), m.entries) for m in maps])
    changes = [((m.program, change), getattr(m, change)) for m in maps for change in ("added", "removed", "failed")]
    yield _counter("cgroup_map_changes", "Changes to a map of cgroups.", ("program", "change"), changes)
    yield _counter(
        "cgroup_map_walks", "Walks of the cgroup tree.", ("program",), [((m.program,), m.walks) for m in maps]
    )


def _registry(registry: RegistrySnapshot) -> Iterator[Metric]:
    yield _gauge("registered_processes", "Applications that have a context table.", (), [((), registry.processes)])
    yield _gauge("registry_connections", "Connections to the agent's socket.", (), [((), registry.connections)])
    tables = [(("in_force",), registry.tables - registry.retired), (("retired",), registry.retired)]
    yield _gauge("registry_tables", "Context tables that count against the quotas.", ("state",), tables)
    yield _counter("registrations", "Applications that were registered.", (), [((), registry.registered)])
    refused = [((reason,), count) for reason, count in _reasons(registry.refused, REFUSED_REASONS).items()]
    yield _counter("refused_registrations", "Applications that were not, by reason.", ("reason",), refused)
    forgotten = [((reason,), count) for reason, count in _reasons(registry.forgotten, FORGOTTEN_REASONS).items()]
    yield _counter("forgotten_registrations", "Registrations that ended, by reason.", ("reason",), forgotten)
