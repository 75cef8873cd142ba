# SPDX-License-Identifier: Apache-2.0
"""A control group with a CPU quota, for as long as a demo needs it; cgroup v1 and v2."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from ebpftrace.errors import UnsupportedError

_PERIOD_US = 100_000
_PREFIX = "ebpftrace-demo-"
_REMOVE_S = 3.0
_PROC = Path("/proc")


class CpuQuota:
    """A group whose processes share a part of one CPU; a context manager, which removes it.

    It is made below the group of the calling process, so that a container's own limit still holds. On v2 a group that
    has processes may hand no controller to its children, so there the nearest group above that does is taken.

    Args:
        percent: of one CPU.
        proc: where procfs is mounted.

    Raises:
        UnsupportedError: there is no cgroup file system with a cpu controller, or it may not be written.
    """

    def __init__(self, percent: int, proc: Path = _PROC) -> None:
        self.percent = percent
        self.version, self._home, parent = _find_groups(proc)
        self.path = parent / f"{_PREFIX}{os.getpid()}"
        self._exists = False
        try:
            _remove_stale(parent, proc)
            self.path.mkdir()
            self._exists = True
            self._limit()
        except OSError as error:
            if self._exists:
                self.path.rmdir()
            raise UnsupportedError(
                "a CPU quota", f"{error.filename or self.path}: {error.strerror}", "making a cgroup takes root"
            ) from error

    def _limit(self) -> None:
        quota_us = _PERIOD_US * self.percent // 100
        if self.version == 1:
            _write(self.path / "cpu.cfs_period_us", str(_PERIOD_US))
            _write(self.path / "cpu.cfs_quota_us", str(quota_us))
        else:
            _write(self.path / "cpu.max", f"{quota_us} {_PERIOD_US}")

    def add(self, pid: int) -> None:
        """Move a process, with all its threads, into the group.

        Raises:
            UnsupportedError: the kernel refused.
        """
        try:
            _write(self.path / "cgroup.procs", str(pid))
        except OSError as error:
            raise UnsupportedError("a CPU quota", f"cannot move process {pid} into it: {error.strerror}") from error

    def throttled_ns(self) -> int:
        """The kernel's own count of how long the group was throttled, summed over CPUs."""
        words = dict(line.split() for line in (self.path / "cpu.stat").read_text().splitlines())
        return int(words["throttled_time"]) if self.version == 1 else int(words["throttled_usec"]) * 1000

    def close(self) -> None:
        """Move what is left in it back and remove it; idempotent.

        Raises:
            OSError: it could not be removed in some seconds.
        """
        if not self._exists:
            return
        deadline = time.monotonic() + _REMOVE_S
        while True:
            try:
                self._empty()
                self.path.rmdir()
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)  # a process that ends leaves its group a little later
            else:
                self._exists = False
                return

    def _empty(self) -> None:
        for pid in (self.path / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):  # it ended
                _write(self._home / "cgroup.procs", pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _write(path: Path, text: str) -> None:
    # unbuffered, so that the error is raised here; without O_CREAT, so that a plain directory is refused
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(fd)


def _find_groups(proc: Path) -> tuple[int, Path, Path]:
    """The cgroup version that has the cpu controller here, our own group, and the group to make the new one in."""
    mounts = [line.split() for line in (proc / "self/mounts").read_text().splitlines()]
    for _, where, kind, options, *_ in mounts:
        if kind == "cgroup" and "cpu" in options.split(","):
            own = _own_group(proc, Path(where), "cpu")
            return 1, own, own
    for _, where, kind, *_ in mounts:
        if kind == "cgroup2" and "cpu" in _controllers(Path(where), "cgroup.controllers"):
            own = _own_group(proc, Path(where), "")
            return 2, own, _delegating(own, Path(where))
    raise UnsupportedError("a CPU quota", "no cgroup file system with the cpu controller is mounted")


def _own_group(proc: Path, mount: Path, controller: str) -> Path:
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            own = mount / path.lstrip("/")
            # in a container the mount may show only a part of the tree
            return own if own.is_dir() else mount
    return mount


def _delegating(own: Path, mount: Path) -> Path:
    for group in (own, *own.parents):
        if "cpu" in _controllers(group, "cgroup.subtree_control"):
            return group
        if group == mount:
            break
    raise UnsupportedError(
        "a CPU quota", f"no group from {own} up hands the cpu controller to its children",
        f"as root: echo +cpu > {mount}/cgroup.subtree_control",
    )  # fmt: skip


def _controllers(group: Path, name: str) -> list[str]:
    try:
        return (group / name).read_text().split()
    except FileNotFoundError:
        return []


def _remove_stale(parent: Path, proc: Path) -> None:
    """Remove the empty groups of demos that were killed before they could."""
    for group in parent.glob(f"{_PREFIX}*"):
        if not (proc / group.name.removeprefix(_PREFIX)).exists():
            with suppress(OSError):  # another user's, or not empty: neither is ours to settle
                group.rmdir()
