# SPDX-License-Identifier: Apache-2.0
"""A memory cgroup with a limit, for the calling process."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import machine

_ROOT = Path("/sys/fs/cgroup")


def _own(controller):
    """The cgroup that this process is in: of a version 1 controller, or of version 2 for ""."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    return ""


class MemoryCgroup:
    """What this process allocates from now on counts there; what it has counts where it was. Gone at the end.

    Args:
        room_mib: the limit.

    Raises:
        OSError: there is no memory controller here, or no permission.
    """

    def __init__(self, room_mib):
        v1 = (_ROOT / "memory" / "memory.limit_in_bytes").exists()
        self._root, limit = (_ROOT / "memory", "memory.limit_in_bytes") if v1 else (_ROOT, "memory.max")
        self._home = self._root / _own("memory" if v1 else "")
        self._path = self._root / f"ebpftrace-test-{uuid.uuid4().hex[:8]}"
        if not v1 and "memory" not in (_ROOT / "cgroup.subtree_control").read_text().split():
            (_ROOT / "cgroup.subtree_control").write_text("+memory")
        self._path.mkdir()
        (self._path / limit).write_text(str(room_mib << 20))

    def __enter__(self):
        (self._path / "cgroup.procs").write_text(str(os.getpid()))
        return self

    def _removed(self):
        try:
            self._path.rmdir()
        except OSError:  # busy until the last task is really out
            return False
        return True

    def __exit__(self, *exc):
        (self._home / "cgroup.procs").write_text(str(os.getpid()))
        assert machine.until(self._removed), f"{self._path} cannot be removed"
