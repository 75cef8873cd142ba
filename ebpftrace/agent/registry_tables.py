# SPDX-License-Identifier: Apache-2.0
"""Context tables of other processes: made, put where BPF programs look for them, and taken out again."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ebpftrace.errors import BpfError
from ebpftrace.kernel._native import ffi, lib
from ebpftrace.kernel.maps import Map

if TYPE_CHECKING:
    from ebpftrace.programs.core import Core

SLOT_BYTES = int(ffi.sizeof("struct ebt_slot"))
LINE_BYTES = int(ffi.sizeof("struct ebt_line"))
SLOTS = int(lib.EBT_TABLE_SLOTS)


class Ids(NamedTuple):
    """The kernel's ids of a table's maps."""

    slots: int
    lines: int


class Table:
    """One table: the slots that a process writes, the lines that it only reads.

    Args:
        slots: to be mapped writable by one process.
        lines: frozen: no system call and no mapping writes to it. A descriptor that is open for reading only could not
            be mapped at all: the kernel takes that for a private mapping.
    """

    def __init__(self, slots: Map, lines: Map) -> None:
        self.slots = slots
        self.lines = lines
        self.ids = Ids(_map_id(slots.fd), _map_id(lines.fd))

    @classmethod
    def make(cls, slots: Map | None = None) -> Table:
        """Make an empty one.

        Args:
            slots: of an agent before this one, to go on with; closed when that cannot be. The lines are new always:
                nobody wrote to them while there was no agent, so what they say of a wait is wrong.

        Raises:
            BpfError: no memory, or CAP_BPF was given up.
        """
        if slots is None:
            slots = Map.create_array("slots", value_size=SLOT_BYTES, max_entries=SLOTS, mmapable=True)
        try:
            lines = Map.create_array("thread_lines", value_size=LINE_BYTES, max_entries=SLOTS, mmapable=True)
        except BpfError:
            slots.close()
            raise
        table = cls(slots, lines)
        try:
            lines.freeze()
        except BpfError:
            table.close()
            raise
        return table

    def close(self) -> None:
        """Close the descriptors; whoever else has the table goes on having it. Idempotent."""
        self.slots.close()
        self.lines.close()


def _map_id(fd: int) -> int:
    said = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    return int(said.get("map_id", 0))


class Tables:
    """The tables in force: those that BPF programs find by a thread's process.

    Args:
        core: owner of the shared maps.
    """

    def __init__(self, core: Core) -> None:
        self._processes, self._lines = core.map("processes"), core.map("lines")
        self._publishers = core.map("publishers")
        self._bits: Counter[int] = Counter()  # processes share them, modulo their number

    def put(self, tgid: int, table: Table) -> None:
        """Have programs find `table` for the process `tgid`.

        Raises:
            BpfError: E2BIG when there is no room for one more.
        """
        key = struct.pack("=I", tgid)
        self._lines.update(key, struct.pack("=I", table.lines.fd))
        try:
            self._processes.update(key, struct.pack("=I", table.slots.fd))
            self._count(tgid, 1)
        except BpfError:
            _delete(self._processes, key)
            _delete(self._lines, key)
            raise

    def remove(self, tgid: int) -> None:
        """Have programs find no table for `tgid`; idempotent.

        Raises:
            BpfError: the kernel refused.
        """
        key = struct.pack("=I", tgid)
        if _delete(self._processes, key):
            self._count(tgid, -1)
        _delete(self._lines, key)

    def _count(self, tgid: int, change: int) -> None:
        """Keep the bit of `tgid` set while any process with that bit has a table."""
        word, bit = tgid // 64 % int(lib.EBT_PUBLISHER_WORDS), tgid % 64
        number = word * 64 + bit
        self._bits[number] += change
        key = struct.pack("=I", word)
        bits = int.from_bytes(self._publishers.lookup(key) or b"", "little")
        bits = bits | 1 << bit if self._bits[number] else bits & ~(1 << bit)
        self._publishers.update(key, struct.pack("=Q", bits))
        if not self._bits[number]:
            del self._bits[number]


def _delete(target: Map, key: bytes) -> bool:
    """Remove a key; False when it was not there."""
    if target.lookup(key) is None:
        return False
    target.delete(key)
    return True
