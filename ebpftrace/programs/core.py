# SPDX-License-Identifier: Apache-2.0
"""The core object: owner of the maps that all programs of a loader share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebpftrace.kernel.object import BpfObject
from ebpftrace.programs.catalog import CORE, ShippedProgram

if TYPE_CHECKING:
    from ebpftrace.kernel.maps import Map

TABLES = ("processes", "lines")
"""tgid → a process's context table, and the thread lines beside it."""
TEMPLATES = ("slots", "thread_lines")
"""What the inner maps of `TABLES` look like; in the core object, the tables of one process."""
_SHARED = (*TABLES, "publishers")
_UNUSED = ("events", "drops")
DROP_REASONS = ("ring_full", "map_full", "limit")
"""Order of `enum ebt_drop` in bpf/include/ebpftrace_abi.h."""
# A reader looks into a ring each few tens of milliseconds; a record wakes it when this part of the ring is unread.
_WAKEUP_SHARE = 4


class Core:
    """The core object, loaded.

    Raises:
        EbpftraceError: the kernel refuses it, and so would refuse every shipped program.
    """

    def __init__(self) -> None:
        self.object = BpfObject(CORE, ShippedProgram(CORE).object_bytes())
        for name in _UNUSED:
            self.object.skip_map(name)

    def load(self) -> None:
        """Make the shared maps in the kernel."""
        self.object.load()

    def map(self, name: str) -> Map:
        """Return one of the shared maps, or a template."""
        return self.object.map(name)

    def lend(self, obj: BpfObject) -> None:
        """Have `obj`, which is not loaded yet, use the shared maps in place of its own."""
        names = obj.map_names()
        for name in _SHARED:
            if name in names:
                obj.share_map(name, self.object.map(name))
        for name in TEMPLATES:
            if name in names:
                obj.skip_map(name)


def uses_core(obj: BpfObject) -> bool:
    """Was this object made with our header, bpf/include/ebpftrace.bpf.h?"""
    return all(name in obj.map_names() for name in _SHARED)


def program_bit(obj: BpfObject) -> int:
    """Return an object's bit of a context's mask, as it was set before loading; 0 when it has none."""
    field = obj.btf.variables(".rodata").get("ebt_program_bit")
    if field is None:
        return 0
    return int.from_bytes(obj.rodata()[field.offset : field.offset + field.size], "little")


def size_rings(obj: BpfObject, size: int) -> None:
    """Give each ring buffer of an object with our header `size` bytes, and tell it when to wake its reader."""
    for name in obj.ring_names():
        obj.set_ring_bytes(name, size)
    obj.set_rodata("ebt_wakeup_bytes", size // _WAKEUP_SHARE)


def read_drops(obj: BpfObject) -> dict[str, int]:
    """Return the records that a loaded object with our header could not submit, by reason."""
    drops = obj.map("drops")
    counts = {}
    for number, reason in enumerate(DROP_REASONS):
        cpus = drops.lookup_per_cpu(number.to_bytes(4, "little"))
        counts[reason] = sum(int.from_bytes(cpu, "little") for cpu in cpus)
    return counts
