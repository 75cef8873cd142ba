# SPDX-License-Identifier: Apache-2.0
"""BPF maps by file descriptor."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Self

from ebpftrace.errors import BpfError
from ebpftrace.kernel._native import check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator


class Map:
    """A BPF map; keys and values are bytes of the map's sizes.

    Args:
        fd: the map's file descriptor; closed with the map when `owned`.
        name: for error messages.
        key_size: bytes.
        value_size: bytes, of one CPU's value for a per-CPU map.
    """

    def __init__(self, fd: int, *, name: str, key_size: int, value_size: int, owned: bool = False) -> None:
        self.fd = fd
        self.name = name
        self.key_size = key_size
        self.value_size = value_size
        self._owned = owned

    @classmethod
    def create_array(cls, name: str, *, value_size: int, max_entries: int, mmapable: bool = False) -> Self:
        """Create an array map.

        Raises:
            BpfError: the kernel refused (no CAP_BPF, no memory, no BPF_F_MMAPABLE before 5.5).
        """
        flags = lib.BPF_F_MMAPABLE if mmapable else 0
        fd = lib.ebt_map_create(lib.BPF_MAP_TYPE_ARRAY, name.encode(), 4, value_size, max_entries, flags)
        check(f"create the BPF array {name!r} of {max_entries} × {value_size} bytes", fd)
        return cls(fd, name=name, key_size=4, value_size=value_size, owned=True)

    @classmethod
    def create_hash(cls, name: str, *, key_size: int, value_size: int, max_entries: int) -> Self:
        """Create a hash map.

        Raises:
            BpfError: the kernel refused (no CAP_BPF, no memory).
        """
        fd = lib.ebt_map_create(lib.BPF_MAP_TYPE_HASH, name.encode(), key_size, value_size, max_entries, 0)
        check(f"create the BPF hash {name!r} of {max_entries} × {key_size} + {value_size} bytes", fd)
        return cls(fd, name=name, key_size=key_size, value_size=value_size, owned=True)

    @classmethod
    def pinned(cls, path: str, *, name: str, key_size: int, value_size: int) -> Self:
        """Open a map by the name that it has in a BPF file system.

        Raises:
            BpfError: ENOENT, EACCES.
        """
        fd = check(f"open the BPF map {path}", lib.bpf_obj_get(os.fsencode(path)))
        return cls(fd, name=name, key_size=key_size, value_size=value_size, owned=True)

    @classmethod
    def create_ring(cls, name: str, size: int) -> Self:
        """Create a ring buffer of `size` bytes.

        Raises:
            BpfError: the kernel refused (no CAP_BPF, none before 5.8).
        """
        fd = lib.ebt_map_create(lib.BPF_MAP_TYPE_RINGBUF, name.encode(), 0, 0, size, 0)
        check(f"create the ring buffer {name!r} of {size} bytes", fd)
        return cls(fd, name=name, key_size=0, value_size=0, owned=True)

    def _buffer(self, data: bytes, size: int, what: str) -> Any:
        if len(data) != size:
            raise ValueError(f"map {self.name!r} has {what}s of {size} bytes, not {len(data)}")
        return ffi.from_buffer(data)

    def update(self, key: bytes, value: bytes) -> None:
        """Set a key's value.

        Raises:
            BpfError: E2BIG when the map is full, EPERM without privilege.
        """
        code = lib.bpf_map_update_elem(
            self.fd, self._buffer(key, self.key_size, "key"), self._buffer(value, self.value_size, "value"), lib.BPF_ANY
        )
        if code < 0:
            raise BpfError(f"update map {self.name!r}", errno=ffi.errno)

    def delete(self, key: bytes) -> None:
        """Remove a key.

        Raises:
            BpfError: ENOENT when there is none.
        """
        if lib.bpf_map_delete_elem(self.fd, self._buffer(key, self.key_size, "key")) < 0:
            raise BpfError(f"remove a key of map {self.name!r}", errno=ffi.errno)

    def freeze(self) -> None:
        """Let only BPF programs write to the map from now on: no system call, no writable mapping. For good.

        Raises:
            BpfError: EBUSY while it is mapped writable, or frozen already.
        """
        check(f"freeze map {self.name!r}", lib.bpf_map_freeze(self.fd))

    def pin(self, path: str) -> None:
        """Give the map a name in a BPF file system, which keeps it.

        Raises:
            BpfError: EEXIST, EACCES; EPERM where that is another file system.
        """
        check(f"pin map {self.name!r} as {path}", lib.bpf_obj_pin(self.fd, os.fsencode(path)))

    def lookup(self, key: bytes) -> bytes | None:
        """Return a key's value, of a map that is not per CPU; None when there is none.

        Raises:
            BpfError: EPERM without privilege, where the kernel asks for it.
        """
        value = ffi.new("char[]", self.value_size)
        if lib.bpf_map_lookup_elem(self.fd, self._buffer(key, self.key_size, "key"), value) < 0:
            if ffi.errno == errno.ENOENT:
                return None
            raise BpfError(f"look up map {self.name!r}", errno=ffi.errno)
        return bytes(ffi.buffer(value))

    def lookup_per_cpu(self, key: bytes) -> list[bytes]:
        """Return a key's value of each possible CPU, of a per-CPU map."""
        cpus = check("count the possible CPUs", lib.libbpf_num_possible_cpus())
        stride = (self.value_size + 7) & ~7
        value = ffi.new("char[]", stride * cpus)
        if lib.bpf_map_lookup_elem(self.fd, self._buffer(key, self.key_size, "key"), value) < 0:
            raise BpfError(f"look up map {self.name!r}", errno=ffi.errno)
        data = bytes(ffi.buffer(value))
        return [data[cpu * stride : cpu * stride + self.value_size] for cpu in range(cpus)]

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the keys; entries that come and go meanwhile may or may not be seen."""
        key, following = ffi.NULL, ffi.new("char[]", self.key_size)
        while lib.bpf_map_get_next_key(self.fd, key, following) == 0:
            yield bytes(ffi.buffer(following))
            key, following = following, ffi.new("char[]", self.key_size)
        if ffi.errno != errno.ENOENT:
            raise BpfError(f"walk map {self.name!r}", errno=ffi.errno)

    def close(self) -> None:
        """Close the file descriptor if it is this object's own; idempotent."""
        if self._owned and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class PerfArray(Map):
    """A perf event array: the older way to send records, a buffer for each CPU.

    Args:
        fd: the map's file descriptor; closed with the map when `owned`.
        name: for error messages.
        pages: of each CPU's buffer, a power of two.
    """

    def __init__(self, fd: int, *, name: str, pages: int, owned: bool = False) -> None:
        super().__init__(fd, name=name, key_size=4, value_size=4, owned=owned)
        self.pages = pages
