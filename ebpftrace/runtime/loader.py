# SPDX-License-Identifier: Apache-2.0
"""The kernel side of a running library: objects, their knobs, their counters, this process's context table."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
from typing import TYPE_CHECKING

from ebpftrace.config.resolve import resolve
from ebpftrace.errors import BpfError, EbpftraceError, UnsupportedError
from ebpftrace.kernel._native import lib
from ebpftrace.kernel.btf import Btf
from ebpftrace.kernel.maps import Map
from ebpftrace.kernel.object import BpfObject
from ebpftrace.programs import find
from ebpftrace.programs.choose import choose_functions, kernel_knobs
from ebpftrace.programs.core import TABLES, TEMPLATES, Core, read_drops, size_rings
from ebpftrace.programs.knobs import fill_lists, set_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.programs import ShippedProgram
    from ebpftrace.settings import Settings

logger = logging.getLogger("ebpftrace.runtime")

_ROOTS = "roots"
_PROCS = "procs"
_TIES = "ties"
_EVENTS = "events"


class LoadedProgram:
    """One program in the kernel.

    Args:
        name: the stem.
        obj: its object, loaded.
        layouts: of its records.
        bit: of a context's mask.
    """

    def __init__(self, name: str, obj: BpfObject, layouts: Sequence[RecordLayout], bit: int) -> None:
        self.name = name
        self.object = obj
        self.layouts = layouts
        self.bit = bit
        self.events = obj.map(_EVENTS)
        self._procs = obj.map(_PROCS) if _PROCS in obj.map_names() else None

    def drops(self) -> dict[str, int]:
        """Return the records lost in the kernel, by reason."""
        return read_drops(self.object)

    def running(self) -> int | None:
        """Return how many traced processes run still, whose spans come when they end; None: it traces none."""
        return sum(1 for _ in self._procs) if self._procs is not None else None


class KernelSide:
    """All programs of this process, loaded and attached; and its context table."""

    def __init__(self) -> None:
        self.programs: list[LoadedProgram] = []
        self.failed: dict[str, EbpftraceError] = {}
        self._loading: BpfObject | None = None
        self._core = Core()

    def load(self, settings: Settings) -> None:
        """Load and attach; on an error, what is there by then is the caller's to close().

        Args:
            settings: which programs, and their knobs.

        Raises:
            EbpftraceError: the kernel refuses what no program can do without. A single program that cannot be loaded
                is left out, with one log line.
        """
        _require_ring_buffers()
        self._kernel_btf = Btf.kernel()
        self._core.load()
        self.tgid = self._identify()
        self._make_table()
        self._load_all(settings)

    def _identify(self) -> int:
        """This process's id to the kernel, which differs from getpid() in a pid namespace."""
        try:
            return self._core.object.run_once("identify")
        except BpfError as error:
            logger.debug("the kernel cannot run a program once (%s); taking getpid()", error)
            return os.getpid()

    def _make_table(self) -> None:
        # the core object's own arrays: inner maps must be like their template to the last detail of their BTF
        self.slots, self.lines = (self._core.map(name) for name in TEMPLATES)
        key = struct.pack("=I", self.tgid)
        for shared, table in zip(TABLES, (self.slots, self.lines), strict=True):
            self._core.map(shared).update(key, struct.pack("=I", table.fd))
        word, bit = divmod(self.tgid, 64)
        self._core.map("publishers").update(
            struct.pack("=I", word % lib.EBT_PUBLISHER_WORDS), struct.pack("=Q", 1 << bit)
        )

    def _load_all(self, settings: Settings) -> None:
        knobs: dict[str, int | Sequence[str]] = {
            **kernel_knobs(self._kernel_btf),
            "min_off_cpu_ns": settings.min_off_cpu_us * 1000,
            _ROOTS: settings.exec_roots,
        }
        for number, name in enumerate(settings.programs):
            try:
                self._load(find(name), 1 << number, knobs, settings)
            except (BpfError, UnsupportedError) as error:
                if isinstance(error, BpfError) and error.errno in (errno.EPERM, errno.EACCES):
                    raise  # nor will the others be allowed
                self.failed[name] = error
                logger.warning("the program %r is left out: %s", name, error)

    def _load(
        self, program: ShippedProgram, bit: int, knobs: Mapping[str, int | Sequence[str]], settings: Settings
    ) -> None:
        self._loading = obj = BpfObject(program.name, program.object_bytes())
        try:
            layouts = resolve(program.name, f"{program.stem}.yaml", program.config(), obj)
            obj.set_rodata("ebt_program_bit", bit)
            set_numbers(obj, knobs, known_only=True)
            size_rings(obj, settings.ring_kib * 1024)
            _choose(obj, self._kernel_btf, extras=settings.extras)
            self._core.lend(obj)
            obj.load()
            if _ROOTS in obj.map_names():
                fill_lists(obj, {_ROOTS: knobs[_ROOTS]})
            obj.attach()
            self.programs.append(LoadedProgram(program.name, obj, layouts, bit))
        except BaseException:
            obj.close()
            raise
        finally:
            self._loading = None

    def bits(self) -> dict[str, int]:
        """Return each loaded program's bit in a context's mask."""
        return {program.name: program.bit for program in self.programs}

    def shared_map(self, name: str) -> Map:
        """Return one of the maps that all programs share ("processes")."""
        return self._core.map(name)

    def ties(self) -> Map | None:
        """Return the map that ties sockets to spans; None when the program that looks at it is not loaded."""
        found = (program.object.map(_TIES) for program in self.programs if _TIES in program.object.map_names())
        return next(found, None)

    def _objects(self) -> list[BpfObject]:
        loading = [self._loading] if self._loading is not None else []
        return [*(program.object for program in self.programs), *loading, self._core.object]

    def close(self) -> None:
        """Detach and unload everything; idempotent."""
        for obj in self._objects():
            obj.close()

    def forget(self) -> None:
        """In the child of a fork: let go of all file descriptors; the parent's programs run on."""
        for obj in self._objects():
            obj.forget()


def _require_ring_buffers() -> None:
    """Say clearly what else would be an "invalid argument" somewhere in an object."""
    try:
        Map.create_ring("ebt_probe", mmap.PAGESIZE).close()
    except BpfError as error:
        if error.errno != errno.EINVAL:
            raise
        raise UnsupportedError(
            "the BPF ring buffer", "this kernel has no BPF_MAP_TYPE_RINGBUF", "use a kernel from 5.8 on"
        ) from error


def _choose(obj: BpfObject, kernel: Btf, *, extras: bool) -> None:
    """Load those functions whose hooks this kernel has.

    Raises:
        UnsupportedError: it has none of them.
    """
    missing = choose_functions(obj, kernel, extras=extras)
    if len(missing) == sum(not function.optional for function in obj.programs()):
        raise UnsupportedError(f"the program {obj.name!r}", "; ".join(dict.fromkeys(missing.values())))
    for hook, reason in missing.items():
        logger.warning("the program %r does without %s: %s", obj.name, hook, reason)
