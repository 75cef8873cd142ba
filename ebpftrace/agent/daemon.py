# SPDX-License-Identifier: Apache-2.0
"""The agent from start to end: load, give up privileges, read, export, reload, stop.

The main thread does all of that but reading and sending, and waits for signals in between:

    SIGTERM, SIGINT   detach, empty the rings, send what is queued, within a deadline; a second one ends at once
    SIGHUP            read the configuration again
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ebpftrace.agent import privileges
from ebpftrace.agent.export import Export, ExportChoice
from ebpftrace.agent.fleet import Fleet
from ebpftrace.agent.health import judge
from ebpftrace.agent.landlock import endpoint_ports, restrict
from ebpftrace.agent.logs import fields
from ebpftrace.agent.metrics import MetricsServer
from ebpftrace.agent.program import Source
from ebpftrace.agent.registry import Registry, RegistryOptions
from ebpftrace.agent.sdnotify import Notifier
from ebpftrace.agent.snapshot import AgentSnapshot, ProgramSnapshot, ReaderSnapshot
from ebpftrace.agent.startup import SelfTrace
from ebpftrace.config.files import find
from ebpftrace.errors import BpfError, CommandError, ConfigError, EbpftraceError
from ebpftrace.programs import program_name
from ebpftrace.spans.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ebpftrace.agent.privileges import Privileges
    from ebpftrace.config.files import ProgramFiles
    from ebpftrace.spans.otlp.choose import Encoder
    from ebpftrace.spans.pipeline import Pipeline, RecordStats

logger = logging.getLogger("ebpftrace.agent")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_TICK_S = 1.0
_FAILED_START_S = 3.0  # for its trace to be sent: who mistyped a name must not wait for a collector that is down
_SPARE_S = 5.0  # to end in, beyond the time that sending may take


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    names: tuple[str, ...] = ()
    config_dir: Path | None = None
    files: tuple[Path, ...] = ()
    overrides: tuple[tuple[str, str, str], ...] = ()
    """(stem, knob, value) of each `--set`."""

    encoder: Encoder = "auto"
    output: str = ""
    listen: str = ""
    """HOST:PORT of the metrics; "" = none."""

    keep: frozenset[str] | None = privileges.AUTO
    landlock: bool = True
    strict: bool = False
    extras: bool = True
    ring_kib: int = 4096
    shutdown_s: float = 10.0
    registry: RegistryOptions | None = None
    """Registration of applications; None = none."""

    insist: bool = False
    """End when there can be no registration."""


class Agent:
    """One run of the agent, in the main thread of a process that has no other yet.

    Args:
        options: of the command line.

    Raises:
        ConfigError: an OTEL_* variable is wrong, or options contradict each other.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._choice = ExportChoice(encoder=options.encoder, output=options.output)
        self._notifier = Notifier.from_environment()
        self._metrics: MetricsServer | None = None
        self._started_at = time.time()
        self._loads = self._load_failures = 0
        self._loaded_at = 0.0
        self._stopping = False
        self._fleet: Fleet | None = None
        self._export: Export | None = None
        self._reader: Reader | None = None
        self._pipeline: Pipeline | None = None
        self._privileges: Privileges | None = None
        self._registry: Registry | None = None

    def run(self) -> int:
        """Run until a signal ends it; return the exit code: 1 when spans were lost at the end.

        Raises:
            EbpftraceError: it could not start; the trace of that was exported if that was possible.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # all threads inherit this
        trace = SelfTrace("agent.start")
        try:
            self._start(trace)
            self._serve()
        except Exception as error:
            trace.root.failed(error)
            if not self._loads:
                _tell(error)
                self._export_failure(trace, error)
            raise
        finally:
            lost = self._stop()
            self._notifier.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return 1 if lost else 0

    # --- start

    def _start(self, trace: SelfTrace) -> None:
        if self._options.listen:
            with trace.step("listen"):
                self._metrics = MetricsServer(self.snapshot, self._options.listen)
        options, sources = self._options, self._sources()
        self._fleet = Fleet(options.ring_kib * 1024, strict=options.strict, extras=options.extras)
        self._fleet.load(sources, trace)
        self._check(self._fleet)
        if self._choice.settings is not None:  # it may read keys; its threads start with its first span
            self._open(trace)
        if options.registry is not None:
            self._open_registry(options.registry, self._fleet, trace)
        with trace.step("give up privileges"):
            self._privileges = privileges.reduce(self._options.keep)
            if self._options.landlock:
                self._confine(sources, self._fleet)
        if self._export is None:
            self._open(trace)
        assert self._export is not None  # noqa: S101
        self._pipeline = self._export.pipeline(self._fleet.layouts())
        self._reader = Reader(self._fleet.rings(), self._pipeline.consume)
        self._fleet.begin()
        if self._metrics is not None:
            self._metrics.start()
            logger.info("metrics are served", extra=fields(listen=self._options.listen, port=self._metrics.port))
        if self._registry is not None:
            self._registry.start(self._fleet.bits())
        self._loads, self._loaded_at = 1, time.time()
        self._export.emit(trace.end())
        self._notifier.ready(self._status())
        logger.info("the agent runs", extra=fields(programs=",".join(p.source.stem for p in self._fleet.programs)))

    def _open(self, trace: SelfTrace) -> None:
        with trace.step("open exporter"):
            self._export = self._choice.open()

    def _open_registry(self, options: RegistryOptions, fleet: Fleet, trace: SelfTrace) -> None:
        try:
            with trace.step("open registry"):
                self._registry = Registry(options, fleet.core())
        except EbpftraceError as error:
            if self._options.insist:
                raise
            logger.warning("applications cannot register: %s", error)

    def _sources(self) -> list[Source]:
        options = self._options
        found = find(options.names, options.config_dir, options.files)
        _refuse_same_names(found)
        stems = {files.stem for files in found}
        for stem, knob, _ in options.overrides:
            if stem not in stems:
                raise ConfigError(f"--set {stem}.{knob}: there is no program {stem!r} among {', '.join(sorted(stems))}")
        return [
            Source.read(files, [(knob, value) for stem, knob, value in options.overrides if stem == files.stem])
            for files in found
        ]

    def _check(self, fleet: Fleet) -> None:
        """Is there enough to go on with?"""
        if not fleet.programs:
            refused = any(isinstance(e, BpfError) and e.errno == errno.EPERM for e in fleet.failed.values())
            mend = (
                "; it takes CAP_BPF and CAP_PERFMON: run it as root, or by a unit that grants them" if refused else ""
            )
            raise CommandError("no program runs: " + "; ".join(f"{n}: {e}" for n, e in fleet.failed.items()) + mend)
        if self._options.strict and fleet.failed:
            wrong = "; ".join(f"{name}: {error}" for name, error in fleet.failed.items())
            raise CommandError(f"--strict, and not every program runs: {wrong}")

    def _confine(self, sources: Sequence[Source], fleet: Fleet) -> None:
        output = self._options.output
        # a file may be a link to another place at the next reload: of that, the directory of its name is known
        read = [place.parent for source in sources for place in (source.yaml.absolute(), source.yaml.resolve())]
        if self._options.config_dir is not None:
            read.append(self._options.config_dir.resolve())
        if any(source.bcc for source in sources):  # a reload may compile
            from ebpftrace.bcc.compiler import header_folders

            read += header_folders()
        native = self._choice.settings
        restrict(
            [*([output] if output else []), *(self._registry.writes if self._registry is not None else [])],
            read=[*read, *self._choice.files(), *(path for program in fleet.programs for path in program.reads())],
            connect_ports=endpoint_ports(native.endpoint, os.environ) if native is not None else None,
            bind_ports=[0] if native is None or native.protocol == "grpc" else [],  # gRPC tries whether there is IPv6
            abstract_sockets=self._notifier.abstract,
        )

    def _export_failure(self, trace: SelfTrace, cause: Exception) -> None:
        """Have the trace of a start that failed exported, where that is possible."""
        try:
            if self._export is None:
                self._export = self._choice.open()
            self._export.emit(trace.end())
        except EbpftraceError as error:
            if str(error) != str(cause):  # the exporter is what failed: that is said
                logger.warning("the trace of the failed start is not exported: %s", error)

    # --- in between

    def _serve(self) -> None:
        while True:
            received = signal.sigtimedwait(_SIGNALS, _TICK_S)
            if judge(self.snapshot(), time.time()).alive:
                self._notifier.keep_alive()
            if received is None:
                continue
            if received.si_signo != signal.SIGHUP:
                logger.info("stopping", extra=fields(signal=signal.Signals(received.si_signo).name))
                return
            self._reload()

    def _reload(self) -> None:
        assert self._fleet is not None and self._reader is not None  # noqa: S101, PT018  (started)
        assert self._pipeline is not None and self._export is not None and self._privileges is not None  # noqa: S101, PT018
        self._notifier.reloading()
        trace = SelfTrace("agent.reload")
        whole = False
        try:
            with self._privileges.for_loading():
                whole = self._fleet.change(self._sources(), trace, self._reader, self._pipeline)
        except (EbpftraceError, OSError) as error:
            trace.root.failed(error)
            logger.error("the configuration stays as it was: %s", error)  # noqa: TRY400
        except Exception as error:  # what runs must not end for it
            trace.root.failed(error)
            logger.exception("the configuration stays as it was, because of an error in ebpftrace")
        if whole:
            self._loads += 1
            self._loaded_at = time.time()
        else:
            self._load_failures += 1
        self._fleet.begin()
        if self._registry is not None:
            self._registry.set_programs(self._fleet.bits())
        self._export.emit(trace.end())
        self._notifier.ready(self._status())
        running = ",".join(program.source.stem for program in self._fleet.programs)
        logger.info("reloaded", extra=fields(programs=running, complete=whole))

    def _status(self) -> str:
        assert self._fleet is not None  # noqa: S101
        failed = f", {len(self._fleet.failed)} failed" if self._fleet.failed else ""
        return f"{len(self._fleet.programs)} programs run{failed}"

    # --- the end

    def _stop(self) -> bool:
        """Take everything down in order; return whether spans were lost by it."""
        self._stopping = True
        self._notifier.stopping()
        self._notifier.extend_timeout(self._options.shutdown_s + _SPARE_S)
        patience = self._options.shutdown_s if self._loads else min(self._options.shutdown_s, _FAILED_START_S)
        deadline = time.monotonic() + patience
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there is nothing to reload any more
        for number in (signal.SIGTERM, signal.SIGINT):  # from here on a second one means it
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
        trace = SelfTrace("agent.stop")
        emptied = self._detach(trace, deadline)
        if self._registry is not None:  # when nothing looks at tables any more
            self._registry.close(max(0.5, deadline - time.monotonic()))
        lost = not emptied
        if self._export is not None:
            if self._loads:
                self._export.emit(trace.end())
            lost |= not self._export.close(max(0.5, deadline - time.monotonic()))
        if self._loads:
            _log_totals(self.snapshot())
        if self._metrics is not None:
            self._metrics.close()
        if self._fleet is not None and emptied:
            self._fleet.close()
        return lost

    def _detach(self, trace: SelfTrace, deadline: float) -> bool:
        """No new records, and those there are read; False when the reader did not come to the end of them."""
        if self._fleet is not None:
            for program in self._fleet.programs:
                with trace.step(f"detach {program.source.stem}"):
                    program.object.detach()
        if self._reader is None:
            return True
        with trace.step("drain"):
            return self._reader.close(max(0.5, deadline - time.monotonic()))

    # --- what it says of itself

    def snapshot(self) -> AgentSnapshot:
        """Look at all counters; from any thread."""
        snapshot = AgentSnapshot(
            started_at=self._started_at,
            config_loads=self._loads,
            config_failures=self._load_failures,
            config_loaded_at=self._loaded_at,
            programs=self._program_snapshots(),
            cgroup_maps=self._fleet.cgroup_maps() if self._fleet is not None else (),
            registry=self._registry.snapshot() if self._registry is not None else None,
            stopping=self._stopping,
        )
        if self._export is not None:
            snapshot = replace(snapshot, export=self._export.snapshot())
        reader = self._reader
        if reader is None:
            return snapshot
        return replace(
            snapshot,
            reader=ReaderSnapshot(
                alive=reader.alive,
                last_round_at=reader.last_round_at,
                batches=reader.batches,
                errors=reader.errors,
                lost_records=reader.lost_records,
            ),
        )

    def _program_snapshots(self) -> tuple[ProgramSnapshot, ...]:
        if self._fleet is None:
            return ()
        counted = self._pipeline.stats() if self._pipeline is not None else {}
        return tuple(_with_records(each, counted.get(each.name)) for each in self._fleet.snapshots())


def _with_records(program: ProgramSnapshot, stats: RecordStats | None) -> ProgramSnapshot:
    if stats is None:
        return program
    return replace(program, records=stats.records, spans=stats.spans, undecoded=dict(stats.undecoded))


def _tell(error: Exception) -> None:
    """Log at once why it does not start: what comes then, exporting the trace of it, may take a while."""
    if isinstance(error, EbpftraceError):
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        logger.error("the agent does not start: %s%s", error, notes)
        error.told = True


def _refuse_same_names(found: Sequence[ProgramFiles]) -> None:
    first: dict[str, ProgramFiles] = {}
    for files in found:
        name = program_name(files.stem)
        other = first.setdefault(name, files)
        if other is not files:
            raise ConfigError(f"{files.yaml}: spans call it {name!r}, and {other.yaml} as well: leave one out")


def _log_totals(snapshot: AgentSnapshot) -> None:
    export = snapshot.export
    logger.info(
        "stopped",
        extra=fields(
            records=sum(program.records for program in snapshot.programs),
            undecoded=sum(sum(program.undecoded.values()) for program in snapshot.programs),
            lost_in_kernel=sum(sum((program.dropped or {}).values()) for program in snapshot.programs),
            lost_in_agent=snapshot.reader.lost_records,
            exported=export.exported,
            failed=export.failed,
            dropped=sum(export.dropped.values()),
        ),
    )


def run(options: Options) -> int:
    """Run an agent; see `Agent`."""
    return Agent(options).run()


def parse_overrides(given: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    """Return (stem, knob, value) of each PROGRAM.KNOB=VALUE.

    Raises:
        ConfigError: one of them is not of that form.
    """
    found = []
    for text in given:
        target, equals, value = text.partition("=")
        stem, dot, knob = target.rpartition(".")
        if not (equals and dot and stem and knob):
            raise ConfigError(f"--set {text!r}: write PROGRAM.KNOB=VALUE, such as exec-trace.roots=/usr/bin/python3")
        found.append((stem, knob, value))
    return tuple(found)
