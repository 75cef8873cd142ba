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

    The kernel takes tens of ms to take a table out, until no program looks at it any more. So of a process that is done
    with only the bit is cleared at once, without which programs do not look; the rest is for when there is time.

    Args:
        core: owner of the shared maps.
    """

    def __init__(self, core: Core) -> None:
        self._processes, self._lines = core.map("processes"), core.map("lines")
        self._publishers = core.map("publishers")
        self._in_force: set[int] = set()
        self._bits: Counter[int] = Counter()  # processes share them, modulo their number
        self._pending: dict[int, None] = {}  # to be taken out, the oldest first

    @property
    def pending(self) -> int:
        """How many are out of force, but still entered."""
        return len(self._pending)

    def put(self, tgid: int, table: Table) -> None:
        """Have programs find `table` for the process `tgid`.

        Raises:
            BpfError: E2BIG when there is no room for one more.
        """
        for other in [each for each in self._pending if _bit(each) == _bit(tgid)]:  # it would be in force again
            self._take_out(other)
        key = struct.pack("=I", tgid)
        self._lines.update(key, struct.pack("=I", table.lines.fd))
        try:
            self._processes.update(key, struct.pack("=I", table.slots.fd))
            self._bits[_bit(tgid)] += 1
            self._in_force.add(tgid)
            self._show(tgid)
        except BpfError:
            self.remove(tgid)
            self._take_out(tgid)
            raise

    def remove(self, tgid: int) -> None:
        """Have programs find no table for `tgid`; idempotent.

        Raises:
            BpfError: the kernel refused.
        """
        if tgid not in self._in_force:
            return
        self._in_force.discard(tgid)
        self._pending[tgid] = None
        self._bits[_bit(tgid)] -= 1
        if self._bits[_bit(tgid)]:
            self._take_out(tgid)  # its bit stays, for another process
        else:
            del self._bits[_bit(tgid)]
            self._show(tgid)

    def take_out(self, number: int) -> None:
        """Take out up to so many of those that are pending.

        Raises:
            BpfError: the kernel refused.
        """
        for tgid in list(self._pending)[:number]:
            self._take_out(tgid)

    def _take_out(self, tgid: int) -> None:
        self._pending.pop(tgid, None)
        key = struct.pack("=I", tgid)
        _delete(self._processes, key)
        _delete(self._lines, key)

    def refresh(self, tgid: int) -> None:
        """Set the bits of all processes again that share a word with `tgid`, which executed another binary.

        Raises:
            BpfError: the kernel refused.
        """
        first = _bit(tgid) & ~63
        bits = sum(1 << bit for bit in range(64) if self._bits[first + bit])
        self._publishers.update(struct.pack("=I", first // 64), struct.pack("=Q", bits))

    def refresh_all(self) -> None:
        """The same for all processes.

        Raises:
            BpfError: the kernel refused.
        """
        for tgid in {_bit(each) & ~63 for each in self._in_force}:
            self.refresh(tgid)

    def _show(self, tgid: int) -> None:
        """Keep the bit of `tgid` set while any process with that bit has a table."""
        word, bit = divmod(_bit(tgid), 64)
        key = struct.pack("=I", word)
        bits = int.from_bytes(self._publishers.lookup(key) or b"", "little")
        bits = bits | 1 << bit if self._bits[_bit(tgid)] else bits & ~(1 << bit)
        self._publishers.update(key, struct.pack("=Q", bits))


def _bit(tgid: int) -> int:
    """Which of all bits in `publishers` is the process's."""
    return tgid % (int(lib.EBT_PUBLISHER_WORDS) * 64)


def _delete(target: Map, key: bytes) -> None:
    """Remove a key, if it is there."""
    if target.lookup(key) is not None:
        target.delete(key)
