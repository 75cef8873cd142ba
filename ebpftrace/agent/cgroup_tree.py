# SPDX-License-Identifier: Apache-2.0
"""The tree of cgroups: where it is mounted, what is in it, and word of what comes and goes."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from ebpftrace.agent.linux import checked, libc
from ebpftrace.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOUNTS = Path("/proc/self/mounts")
_OCTAL = 8


def find_root(mounts: Path = _MOUNTS) -> Path:
    """Return where the tree is mounted whose ids `bpf_get_current_cgroup_id()` answers: version 2.

    Where only version 1 is mounted, the tree of its cpu controller, else the first one.

    Raises:
        UnsupportedError: no cgroup file system is mounted.
    """
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError as error:
        raise UnsupportedError("cgroups", f"{mounts}: {error.strerror}", "mount procfs at /proc") from error
    found = [(kind, options.split(","), Path(_plain(where))) for _, where, kind, options, *_ in lines]
    v2 = [where for kind, _, where in found if kind == "cgroup2"]
    v1 = sorted((("cpu" not in options, where) for kind, options, where in found if kind == "cgroup"))
    for where in (*v2, *(where for _, where in v1)):
        return where
    raise UnsupportedError("cgroups", "no cgroup file system is mounted", "mount -t cgroup2 none /sys/fs/cgroup")


def _plain(path: str) -> str:
    """Undo the escapes of /proc/self/mounts, where a space is a backslash and 040."""
    first, *rest = path.split("\\")
    return first + "".join(chr(int(part[:3], _OCTAL)) + part[3:] for part in rest)


class Group(NamedTuple):
    """A cgroup: its directory, and its id in the kernel, which is the directory's inode number."""

    path: str
    id: int


def walk(top: str, *, limit: int) -> Iterator[Group]:
    """Yield `top` and the groups below it, parents first; at most `limit`. Groups that go meanwhile are left out."""
    try:
        pending = [Group(top, os.stat(top).st_ino)]  # noqa: PTH116
    except OSError:
        return
    while pending and limit > 0:
        group = pending.pop()
        limit -= 1
        yield group
        try:
            with os.scandir(group.path) as entries:
                pending += [
                    Group(entry.path, entry.inode()) for entry in entries if entry.is_dir(follow_symlinks=False)
                ]
        except OSError:  # it went
            continue


class Change(NamedTuple):
    """What happened in a watched directory; `path` is "" when the kernel lost track and all must be looked at."""

    path: str
    appeared: bool


class TreeWatch:
    """inotify on directories: hears of the directories made and removed in them.

    Raises:
        OSError: EMFILE when this user has no inotify instances left.
    """

    _CREATE, _DELETE, _MOVED = 0x100, 0x200, 0x40 | 0x80
    _OVERFLOW, _IGNORED = 0x4000, 0x8000
    _ONLYDIR, _ISDIR = 0x01000000, 0x40000000
    _HEAD = struct.Struct("iIII")
    _BYTES = 1 << 16

    def __init__(self) -> None:
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        self.fd = checked(libc.inotify_init1(flags), "inotify_init1()")
        self._paths: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, path: str) -> None:
        """Watch one more directory.

        Raises:
            OSError: ENOENT when it went, ENOSPC when this user may watch no more.
        """
        mask = ctypes.c_uint32(self._CREATE | self._DELETE | self._MOVED | self._ONLYDIR)
        self._paths[checked(libc.inotify_add_watch(self.fd, os.fsencode(path), mask), path)] = path

    def changes(self) -> Iterator[Change]:
        """Yield what happened since the last call; does not wait."""
        try:
            data = os.read(self.fd, self._BYTES)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            watch, mask, _, length = self._HEAD.unpack_from(data, offset)
            offset += self._HEAD.size
            name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
            offset += length
            if mask & self._IGNORED:
                self._paths.pop(watch, None)
            elif mask & (self._OVERFLOW | self._MOVED):
                yield Change("", appeared=True)
            elif mask & self._ISDIR and watch in self._paths:
                yield Change(os.path.join(self._paths[watch], name), appeared=bool(mask & self._CREATE))  # noqa: PTH118

    def close(self) -> None:
        """Stop watching; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._paths.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
