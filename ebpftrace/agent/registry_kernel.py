# SPDX-License-Identifier: Apache-2.0
"""What the agent asks the kernel about applications that register: bpf/registry.bpf.c."""

from __future__ import annotations

import logging
import struct
from typing import TYPE_CHECKING, NamedTuple

from ebpftrace.errors import BpfError
from ebpftrace.kernel.object import BpfObject, iterate
from ebpftrace.kernel.ringbuf import RingReader
from ebpftrace.programs.catalog import ShippedProgram
from ebpftrace.programs.core import read_drops, size_rings

if TYPE_CHECKING:
    from ebpftrace.kernel.maps import Map
    from ebpftrace.programs.core import Core

logger = logging.getLogger("ebpftrace.agent.registry")

_STEM = "registry"
_PEER = struct.Struct("=QQII")  # bpf/registry.h: struct ebt_registry_peer
_EXEC = struct.Struct("=QII")  # struct ebt_registry_exec
_RING_BYTES = 64 * 1024


class Identity(NamedTuple):
    """A process, as the kernel knows it.

    Args:
        tgid: its id outside of all pid namespaces; 0 = it has ended.
        started_ns: since boot; 0 = not known.
        exec_id: another one after each exec.
        changed: it has another user, group or capabilities than when it connected.
    """

    tgid: int
    started_ns: int
    exec_id: int
    changed: bool


class RegistryKernel:
    """The object of the registry, loaded and attached.

    Args:
        core: owner of the shared maps.

    Raises:
        EbpftraceError: the kernel refuses it.
    """

    def __init__(self, core: Core) -> None:
        self._object = BpfObject(_STEM, ShippedProgram(_STEM).object_bytes())
        try:
            core.lend(self._object)
            size_rings(self._object, _RING_BYTES)
            self._object.load()
            for function in self._object.attachable():
                if function.section.startswith("tp_btf/"):
                    self._object.attach_one(function)
            self._held = self._attach_iterator()
            self._ring = RingReader()
            self._ring.add(self._object.map("events"), 0)
        except BaseException:
            self._object.close()
            raise
        self._peers = self._object.map("peers")

    def _attach_iterator(self) -> int | None:
        try:
            return self._object.attach_iterator("tables_held")
        except BpfError as error:
            logger.warning("tables that applications keep after they have left are counted by time: %s", error)
            return None

    def identify(self, fd: int) -> Identity:
        """Return which process connected at the other end of a socket.

        Args:
            fd: the socket.

        Raises:
            BpfError: this kernel runs no program at once (before 5.10).
        """
        self._object.run_once("identify_peer", fd)
        found = self._peers.lookup(bytes(4)) or bytes(_PEER.size)
        started_ns, exec_id, tgid, changed = _PEER.unpack(found)
        return Identity(tgid if started_ns else 0, started_ns, exec_id, bool(changed))

    @property
    def ring(self) -> Map:
        """What becomes readable when a registered process executed another binary."""
        return self._object.map("events")

    def execs(self) -> list[tuple[int, int]]:
        """Return (tgid, when) of each exec since the last call; by CLOCK_MONOTONIC, ns."""
        batch = self._ring.wait(interval_ms=0, timeout_ms=0)
        found = []
        for _, offset, _ in batch:
            ts_ns, tgid, _ = _EXEC.unpack_from(batch.data, offset)
            found.append((tgid, ts_ns))
        return found

    def missed(self) -> int:
        """Return how many execs could not be told."""
        return sum(read_drops(self._object).values())

    def held(self) -> set[int] | None:
        """Return the ids of all maps in the kernel that may be slots or lines; None where it does not tell."""
        if self._held is None:
            return None
        try:
            data = iterate(self._held)
        except BpfError as error:
            logger.debug("the kernel's maps cannot be listed: %s", error)
            return None
        return {number for (number,) in struct.iter_unpack("=I", data)}

    def close(self) -> None:
        """Detach and unload; idempotent."""
        self._ring.close()
        self._object.close()
