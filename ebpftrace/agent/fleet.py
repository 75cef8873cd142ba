# SPDX-License-Identifier: Apache-2.0
"""The programs that an agent runs, and how one set of them becomes another while records flow."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from ebpftrace.agent.ledger import Ledger
from ebpftrace.agent.loader import Loader
from ebpftrace.errors import EbpftraceError, UnsupportedError
from ebpftrace.kernel.object import BpfObject
from ebpftrace.programs.core import Core, program_bit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ebpftrace.agent.program import AgentProgram, Source
    from ebpftrace.agent.snapshot import CgroupMapSnapshot, ProgramSnapshot
    from ebpftrace.agent.startup import SelfTrace
    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.kernel.maps import Map
    from ebpftrace.kernel.ringbuf import RingReader
    from ebpftrace.spans.pipeline import Pipeline
    from ebpftrace.spans.reader import Reader

logger = logging.getLogger("ebpftrace.agent")

MAX_RINGS = 64
"""Ring buffers that one reader reads (`MAX_RINGS` of kernel/_reader.c)."""

_DRAIN_S = 5.0


class Fleet:
    """All programs of an agent.

    A program whose object stays the same through a reload stays in the kernel, so that none of its records and none of
    what it remembers is lost; only what its records become may change. One whose object is another is attached beside
    its predecessor before that is detached and its rings are emptied: no record is lost, but what happens in the
    milliseconds that both are attached is told twice, and what began before and ended after is known to neither.

    Args:
        ring_bytes: see `Loader`.
        strict, extras: see `Loader`.
    """

    def __init__(self, ring_bytes: int, *, strict: bool = False, extras: bool = True) -> None:
        self.programs: list[AgentProgram] = []
        self.failed: dict[str, EbpftraceError] = {}
        self._core: Core | None = None
        self._loader = Loader(self.core, ring_bytes, strict=strict, extras=extras)
        self._ledger = Ledger()
        self._counting = threading.Lock()  # a counter is in a program or in the ledger, never in both
        self._rings: dict[int, tuple[AgentProgram, str]] = {}
        self._next_ring = 0

    def core(self) -> Core:
        """Return the owner of the shared maps, loaded.

        Raises:
            EbpftraceError: the kernel refuses it.
        """
        if self._core is None:
            core = Core()
            try:
                core.load()
            except EbpftraceError:
                core.object.close()
                raise
            self._core = core
        return self._core

    # --- what the reader and the pipeline need to know

    def rings(self) -> dict[int, Map]:
        """Return the ring buffers, by the number that their records come with."""
        return {number: program.object.map(name) for number, (program, name) in self._rings.items()}

    def bits(self) -> dict[str, int]:
        """Return the programs that act below published contexts, and each one's bit of a context's mask."""
        loaded = [(program.name, program.object) for program in self.programs]
        return {name: bit for name, obj in loaded if isinstance(obj, BpfObject) and (bit := program_bit(obj))}

    def layouts(self) -> dict[int, Sequence[RecordLayout]]:
        """Return the layouts of each ring buffer's records."""
        return {number: program.rings()[name] for number, (program, name) in self._rings.items()}

    # --- life

    def load(self, sources: Iterable[Source], trace: SelfTrace) -> None:
        """Load what is not there yet; what cannot be is in `failed`, and in the log."""
        for source in sources:
            program = self._try_load(source, trace)
            if program is not None:
                self._add(program)
        for program in self.programs:
            program.prepare()

    def _try_load(self, source: Source, trace: SelfTrace) -> AgentProgram | None:
        try:
            program = self._loader.load(source, trace)
            try:
                self._check_room(program)
            except EbpftraceError:
                program.close()
                raise
        except EbpftraceError as error:
            self._fail(source, error)
            return None
        self.failed.pop(source.name, None)
        return program

    def _check_room(self, program: AgentProgram) -> None:
        wanted = len(self._rings) + len(program.rings())
        if wanted > MAX_RINGS:
            raise UnsupportedError(
                f"reading {wanted} ring buffers", f"an agent reads {MAX_RINGS} ring buffers", "run several agents"
            )

    def _fail(self, source: Source, error: EbpftraceError, what: str = "does not run") -> None:
        self.failed[source.name] = error
        logger.error("the program %r %s: %s", source.stem, what, _in_full(error))

    def _add(self, program: AgentProgram) -> list[int]:
        with self._counting:
            self.programs.append(program)
        numbers = []
        for name in program.rings():
            self._rings[self._next_ring] = (program, name)
            numbers.append(self._next_ring)
            self._next_ring += 1
        return numbers

    def change(self, sources: Sequence[Source], trace: SelfTrace, reader: Reader, pipeline: Pipeline) -> bool:
        """Make `sources` what runs; then `begin()` is due.

        Args:
            sources: the same programs as were loaded first, or tried, for the command line names them.
            trace: gets what is done.
            reader: of the rings.
            pipeline: takes their records.

        Returns:
            Whether all of them run. One that cannot be loaded leaves its predecessor, if any, as it was.
        """
        running = {program.name: program for program in self.programs}
        for source in sources:
            predecessor = running.get(source.name)
            if predecessor is None:
                self._start(source, trace, reader, pipeline)
            elif predecessor.source != source:
                self._replace(predecessor, source, trace, reader, pipeline)
            else:
                self.failed.pop(source.name, None)  # a mistake in its files was taken back
        return not self.failed

    def _start(self, source: Source, trace: SelfTrace, reader: Reader, pipeline: Pipeline) -> bool:
        program = self._try_load(source, trace)
        if program is None:
            return False
        program.prepare()
        added = self._add(program)
        rings, layouts = self.rings(), self.layouts()

        def change(reading: RingReader) -> None:
            pipeline.replace(layouts)
            for number in added:
                reading.add(rings[number], number)

        try:
            _between(reader, change)
        except EbpftraceError as error:
            self._fail(source, error)
            self._remove(program, reader, pipeline)
            return False
        return True

    def _replace(
        self, program: AgentProgram, source: Source, trace: SelfTrace, reader: Reader, pipeline: Pipeline
    ) -> None:
        if self._redescribe(program, source, trace, reader, pipeline):
            return
        if self._start(source, trace, reader, pipeline):
            with trace.step(f"remove the old {program.source.stem}"):
                self._remove(program, reader, pipeline)

    def _redescribe(
        self, program: AgentProgram, source: Source, trace: SelfTrace, reader: Reader, pipeline: Pipeline
    ) -> bool:
        """Only the description has changed: keep what runs. True: that is done, or the description is wrong."""
        old = program.source
        if not old.same_code(source):
            return False
        try:
            with trace.step(f"describe {source.stem}"):
                config, layouts = program.describe(source)
        except EbpftraceError as error:
            self._fail(source, error, "goes on as it was")
            return True
        was, layouts_before = program.config, program.layouts
        if (config.knobs, config.kaddrs, config.cgroup_id_map) != (was.knobs, was.kaddrs, was.cgroup_id_map):
            return False
        if {layout.ringbuf for layout in layouts} != program.rings().keys():
            return False
        program.adopt(source, config, layouts)
        program.prepare()
        described = self.layouts()
        try:
            _between(reader, lambda _: pipeline.replace(described))
        except EbpftraceError as error:
            program.adopt(old, was, layouts_before)
            self._fail(source, error, "goes on as it was")
            return True
        self.failed.pop(source.name, None)
        return True

    def _remove(self, program: AgentProgram, reader: Reader, pipeline: Pipeline) -> None:
        program.object.detach()
        gone = [number for number, (owner, _) in self._rings.items() if owner is program]
        _between(reader, lambda _: None)  # empties its rings
        for number in gone:
            del self._rings[number]
        layouts = self.layouts()
        with self._counting:
            self.programs.remove(program)
            self._ledger.retire(program)

        def change(reading: RingReader) -> None:
            for number in gone:
                reading.remove(number)
            pipeline.replace(layouts)

        try:
            _between(reader, change)
        finally:
            program.close()

    def begin(self) -> None:
        """Start the threads that programs need, and have not yet: with what privileges the caller has now."""
        for program in self.programs:
            program.begin()

    # --- what they count, from any thread

    def snapshots(self) -> tuple[ProgramSnapshot, ...]:
        """Return what is known of each program but its records."""
        with self._counting:
            return self._ledger.programs(self.programs, dict(self.failed))

    def cgroup_maps(self) -> tuple[CgroupMapSnapshot, ...]:
        """Return the maps of cgroups that are kept filled."""
        with self._counting:
            return self._ledger.cgroup_maps(self.programs)

    def close(self) -> None:
        """Unload everything; idempotent. Not while a reader reads the rings."""
        for program in self.programs:
            program.close()
        if self._core is not None:
            self._core.object.close()


def _between(reader: Reader, change: Callable[[RingReader], None]) -> None:
    if not reader.between_batches(change, _DRAIN_S):
        logger.warning("the reader did not come to a change within %.0f s; it will when it can", _DRAIN_S)


def _in_full(error: EbpftraceError) -> str:
    """An error with its notes: the verifier's last words are there."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])
