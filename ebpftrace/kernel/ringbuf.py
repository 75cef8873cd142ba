# SPDX-License-Identifier: Apache-2.0
"""Ring buffers and perf buffers, many of them drained by one thread in batches."""

from __future__ import annotations

import errno
import mmap
import struct
from typing import TYPE_CHECKING, Any, Self

from ebpftrace.errors import BpfError
from ebpftrace.kernel._native import check, ffi, lib
from ebpftrace.kernel.maps import Map, PerfArray

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = 8  # u32 ring, u32 size


class Batch:
    """Records of one wait, valid until the next one.

    Args:
        data: the records, each headed by { u32 ring, u32 size } and padded to 8 bytes.
        records: how many.
    """

    __slots__ = ("data", "records")

    def __init__(self, data: memoryview, records: int) -> None:
        self.data = data
        self.records = records

    @property
    def last(self) -> bool:
        """Were the rings empty behind these records, for a moment at least?"""
        return len(self.data) < int(lib.EBT_BATCH_BYTES)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Yield (ring, offset, size) of each record in `data`."""
        heads = self.data.cast("I")
        offset, end = 0, len(self.data)
        while offset < end:
            word = offset >> 2
            size = heads[word + 1]
            yield heads[word], offset + _HEAD, size
            offset += _HEAD + ((size + 7) & ~7)


def name_thread(name: str) -> None:
    """Name the calling thread for the kernel, which keeps 15 bytes: a trace says whom a wait was ended by."""
    lib.ebt_name_thread(name.encode())


def unread_bytes(ring: Map) -> int:
    """Return the bytes in a ring buffer that are reserved or submitted, and not read; from any thread.

    Raises:
        OSError: the kernel refused to map the ring buffer's two positions.
    """
    read, written = (_position(ring, page) for page in range(2))  # in this order: the difference is not negative
    return written - read


def _position(ring: Map, page: int) -> int:
    with mmap.mmap(ring.fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ, offset=page * mmap.PAGESIZE) as mapped:
        position: int = struct.unpack_from("=Q", mapped)[0]
    return position


class RingReader:
    """One thread's view of many ring buffers. The GIL is released while it waits and copies.

    Raises:
        BpfError: out of memory or file descriptors.
    """

    def __init__(self) -> None:
        self._reader: Any = lib.ebt_reader_new()
        if self._reader == ffi.NULL:
            self._reader = None
            raise BpfError("make a ring buffer reader", errno=ffi.errno)
        self._batch = ffi.new("struct ebt_batch *")

    def add(self, ring_map: Map, ring: int) -> None:
        """Read one more ring buffer; its records come with the number `ring`. Not while another thread is in wait().

        The map must stay open until it is removed here, or until close(). A `PerfArray` gets its perf events here.

        Raises:
            BpfError: it is another kind of map, or there are no memory or descriptors left.
        """
        if isinstance(ring_map, PerfArray):
            code = lib.ebt_reader_add_perf(self._reader, ring_map.fd, ring, ring_map.pages)
            check(f"read the perf buffer {ring_map.name!r}", code)
        else:
            check(f"read the ring buffer {ring_map.name!r}", lib.ebt_reader_add(self._reader, ring_map.fd, ring))

    def remove(self, ring: int) -> bool:
        """Stop reading a ring buffer; what is unread in it stays unread. Not while another thread is in wait().

        Returns:
            Whether it was among those that are read.
        """
        return int(lib.ebt_reader_remove(self._reader, ring)) != -errno.ENOENT

    def lost(self, ring: int) -> int:
        """Return the records that the kernel had no room for, by its own count, which only perf buffers have."""
        return int(lib.ebt_reader_lost(self._reader, ring)) if self._reader is not None else 0

    def wait(self, *, interval_ms: int, timeout_ms: int) -> Batch:
        """Return the next records; none when woken or out of time.

        Args:
            interval_ms: look into the rings this often: producers do not wake the reader for each record.
            timeout_ms: return by then, with or without records.
        """
        batch = self._batch
        check("read the ring buffers", lib.ebt_reader_wait(self._reader, interval_ms, timeout_ms, batch))
        return Batch(memoryview(ffi.buffer(batch.data, batch.size)), batch.records)

    def wake(self) -> None:
        """Let wait() return after one more look; from any thread."""
        if self._reader is not None:
            check("wake the ring buffer reader", lib.ebt_reader_wake(self._reader))

    def close(self) -> None:
        """Unmap the rings; idempotent. Not while another thread is in wait(), nor with a perf buffer after a fork."""
        if self._reader is not None:
            lib.ebt_reader_free(self._reader)
            self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
