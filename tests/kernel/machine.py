# SPDX-License-Identifier: Apache-2.0
"""What this machine's kernel holds: BPF objects by id, processes, mounts, CPU cgroups."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import time
import uuid
from pathlib import Path

_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_GET_FD_BY_ID = {"prog_id": 13, "map_id": 14, "link_id": 30}  # enum bpf_cmd
_BPF_FILES = ("anon_inode:bpf-prog", "anon_inode:bpf-map", "anon_inode:bpf_link")
_CGROUP_PREFIX = "ebpftrace-test-"
_PR_SET_CHILD_SUBREAPER = 36

PATIENCE = float(os.environ.get("EBPFTRACE_TEST_PATIENCE", "1"))
"""How much longer than usual everything may take: a machine without hardware virtualisation needs 20 times as long."""

_libc = ctypes.CDLL(None, use_errno=True)


def until(condition, timeout_s=10.0, interval_s=0.02):
    """Wait until `condition()` is true, and return it; what it returned last when the time is up."""
    deadline = time.monotonic() + timeout_s * PATIENCE
    while not (result := condition()) and time.monotonic() < deadline:
        time.sleep(interval_s)
    return result


def bpf_fds(pid="self"):
    """File descriptors of BPF programs, maps and links that a process holds."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since; the one that lists this directory, too
            if str(link.readlink()).startswith(_BPF_FILES):
                found.append(int(link.name))
    return sorted(found)


def bpf_ids(pid="self"):
    """Kernel-wide ids ("prog_id", 12) of the BPF objects that a process holds."""
    found = set()
    for fd in bpf_fds(pid):
        for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in _GET_FD_BY_ID:
                found.add((key, int(value)))
    return sorted(found)


def bpf_exists(kind, number):
    """Does the kernel still have the BPF object of this id?"""
    attr = (ctypes.c_uint32 * 32)(number)
    fd = _libc.syscall(_BPF_SYSCALL, _GET_FD_BY_ID[kind], attr, ctypes.sizeof(attr))
    if fd >= 0:
        os.close(fd)
        return True
    if ctypes.get_errno() != errno.ENOENT:
        raise OSError(ctypes.get_errno(), f"asking for {kind} {number}")
    return False


def remaining(ids, timeout_s=5.0):
    """Those BPF objects that are still there after a while: the kernel frees them in the background."""
    left = list(ids)

    def gone():
        left[:] = [(kind, number) for kind, number in left if bpf_exists(kind, number)]
        return not left

    until(gone, timeout_s)
    return left


def adopt_orphans():
    """Become the parent of grandchildren whose parent ends, so that `children()` finds them."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children():
    """Processes below this one that run, by command name; ended ones are collected."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = stat.read_text().partition(" (")
            name, _, rest = rest.rpartition(") ")
            state, parent = rest.split()[:2]
            if int(parent) != os.getpid():
                continue
            if state == "Z":
                os.waitpid(int(pid), os.WNOHANG)
            else:
                found.append(f"{name} ({pid})")
    return found


def mounts():
    """Mount points of this mount namespace."""
    return sorted(line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())


def cgroups():
    """CPU cgroups made by these tests."""
    return sorted(path.name for path in _cpu_root()[0].glob(f"{_CGROUP_PREFIX}*"))


def _cpu_root():
    """Where CPU cgroups are made, and the version: 1, 2, or 0 for nowhere."""
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    if (v1 / "cpu.cfs_quota_us").exists() or (v1 / "cgroup.procs").exists():
        return v1, 1
    if "cpu" in _words(v2 / "cgroup.controllers"):
        return v2, 2
    return v2, 0


def _words(path):
    return path.read_text().split() if path.exists() else []


class CpuCgroup:
    """A CPU cgroup with a quota, for the calling process, which leaves it and removes it at the end.

    Raises:
        OSError: there is no CPU controller here, or no permission.
    """

    def __init__(self, quota_us, period_us=100_000):
        self._root, self._version = _cpu_root()
        if self._version == 0:
            raise OSError(errno.ENODEV, "no cgroup with a CPU controller", str(self._root))
        self._path = self._root / f"{_CGROUP_PREFIX}{uuid.uuid4().hex[:8]}"
        self._limit = (quota_us, period_us)

    def __enter__(self):
        quota, period = self._limit
        self._home = self._own_cgroup()
        if self._version == 2 and "cpu" not in _words(self._root / "cgroup.subtree_control"):
            (self._root / "cgroup.subtree_control").write_text("+cpu")
        self._path.mkdir()
        try:
            if self._version == 1:
                (self._path / "cpu.cfs_period_us").write_text(str(period))
                (self._path / "cpu.cfs_quota_us").write_text(str(quota))
            else:
                (self._path / "cpu.max").write_text(f"{quota} {period}")
            (self._path / "cgroup.procs").write_text(str(os.getpid()))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _own_cgroup(self):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if (self._version == 1 and "cpu" in controllers.split(",")) or (self._version == 2 and not controllers):
                return self._root / path.lstrip("/")
        return self._root

    def throttled_ns(self):
        """What the kernel itself says about the time without quota."""
        for line in (self._path / "cpu.stat").read_text().splitlines():
            key, value = line.split()
            if key == "throttled_time":
                return int(value)
            if key == "throttled_usec":
                return int(value) * 1000
        raise LookupError(f"{self._path}/cpu.stat says nothing about throttling")

    def __exit__(self, *exc):
        for pid in _words(self._path / "cgroup.procs"):
            (self._home / "cgroup.procs").write_text(pid)

        def removed():
            with contextlib.suppress(OSError):  # busy until the last task is really out
                self._path.rmdir()
            return not self._path.exists()

        if not until(removed):
            raise OSError(errno.EBUSY, "the test's cgroup cannot be removed", str(self._path))
