# SPDX-License-Identifier: Apache-2.0
"""Cgroups by id: of version 2, and of version 1 and both together, where each hierarchy counts for itself.

A cgroup's id is the inode number of its directory and, on 64-bit kernels since 5.5, all there is to a file handle of
it. So the kernel tells the path of an id at once, given CAP_DAC_READ_SEARCH; without that all directories are walked.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.decoders.lookups import Cache, Snapshot
from ebpftrace.decoders.values import number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CGROUPS = "/sys/fs/cgroup"

_MOUNTINFO = Path("/proc/self/mountinfo")
_DEFAULT = ("/sys/fs/cgroup",)
_FILEID_KERNFS = 0xFE
_HANDLE = struct.Struct("=IiQ")  # struct file_handle with a kernfs node's id
_MOST = 100_000  # directories looked into in one walk


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One cgroup.

    Args:
        path: of its directory.
        mount: where its hierarchy is mounted.
    """

    path: str
    mount: str


def parse_mounts(mountinfo: str) -> list[str]:
    """Return where cgroup hierarchies are mounted, version 2 first: helpers in BPF tell ids of that one."""
    found: dict[str, list[str]] = {"cgroup2": [], "cgroup": []}
    for line in mountinfo.splitlines():
        place, _, source = line.partition(" - ")
        fields, kind = place.split(), source.partition(" ")[0]
        if len(fields) > 4 and kind in found:
            found[kind].append(fields[4].replace("\\040", " "))
    return found["cgroup2"] + found["cgroup"]


def _mounts() -> list[str]:
    try:
        return parse_mounts(_MOUNTINFO.read_text(errors="replace")) or list(_DEFAULT)
    except OSError:
        return list(_DEFAULT)


@functools.cache
def _open_by_handle() -> Callable[[int, bytes, int], tuple[int, int]]:
    """open_by_handle_at(2), which Python does not have; it returns the descriptor, or -1 and the errno."""
    import ctypes  # late: few programs ask for cgroups

    libc = ctypes.CDLL(None, use_errno=True)

    def call(mount: int, handle: bytes, flags: int) -> tuple[int, int]:
        found = libc.open_by_handle_at(mount, ctypes.create_string_buffer(handle, len(handle)), flags)
        return found, ctypes.get_errno()

    return call


def by_handle(number: int, mount: str) -> str | None:
    """Return the path of the cgroup that has this id; None when the hierarchy has none.

    Raises:
        OSError: the kernel does not answer (no CAP_DAC_READ_SEARCH, no file handles, no such mount).
    """
    directory = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        handle = _HANDLE.pack(8, _FILEID_KERNFS, number)
        # files of a cgroup (cpu.max) have ids as well, of the same series
        found, code = _open_by_handle()(directory, handle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(directory)
    if found < 0:
        if code in (errno.ESTALE, errno.ENOTDIR):
            return None
        raise OSError(code, os.strerror(code), mount)
    try:
        path = str(Path(f"/proc/self/fd/{found}").readlink())
    finally:
        os.close(found)
    return path if path == mount or path.startswith(mount + "/") else None


def walk(mounts: list[str]) -> dict[int, Cgroup]:
    """Return all cgroups by id; where two hierarchies use the same, the first hierarchy's."""
    found: dict[int, Cgroup] = {}
    for mount in mounts:
        for path, inode in _directories(mount):
            found.setdefault(inode, Cgroup(path, mount))
            if len(found) >= _MOST:
                return found
    return found


def _directories(top: str) -> Iterator[tuple[str, int]]:
    """All directories on the file system of `top`, the upper ones first."""
    try:
        status = Path(top).stat()
    except OSError:
        return
    yield top, status.st_ino
    waiting = [top]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                inner = [(entry.path, entry.inode()) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:  # a cgroup that went away meanwhile
            continue
        yield from inner
        waiting += [path for path, _ in inner]


_walked: Snapshot[int, Cgroup] = Snapshot(lambda: walk(_mounts()))


def _ask(number: int) -> Cgroup | None:
    for mount in _mounts():
        try:
            path = by_handle(number, mount)
        except OSError:
            return _walked.get(number)
        if path is not None:
            return Cgroup(path, mount)
    return None


_cgroups: Cache[int, Cgroup] = Cache(_ask, found_s=60, size=16384)


def _find(value: int | str) -> Cgroup | None:
    code = number(value)
    return _cgroups.get(code) if code is not None and 0 < code < 1 << 64 else None


def cgroup(value: int | str) -> str:
    """The directory of a cgroup."""
    found = _find(value)
    return found.path if found else f"unknown_cgroup_id:{value}"


def cgroup_path(value: int | str) -> str:
    """The path of a cgroup within its hierarchy, as /proc/PID/cgroup has it."""
    found = _find(value)
    return found.path.removeprefix(found.mount) or "/" if found else f"unknown_cgroup_id:{value}"
