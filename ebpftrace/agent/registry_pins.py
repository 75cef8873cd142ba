# SPDX-License-Identifier: Apache-2.0
"""Slots of tables kept in a BPF file system, so that what an application publishes survives the agent.

The name of a table says whose it is: process, start of the process, user, and a digest of the token that only this
process and the agent know. A process that executed another binary has forgotten the token; so has one that only got
the same id.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.agent.registry_tables import SLOT_BYTES
from ebpftrace.errors import BpfError, UnsupportedError
from ebpftrace.kernel.maps import Map

if TYPE_CHECKING:
    from ebpftrace.agent.registry_tables import Table

logger = logging.getLogger("ebpftrace.agent.registry")

DEFAULT_PIN_DIR = "/sys/fs/bpf/ebpftrace"

_NAME = re.compile(r"\d+-\d+-\d+-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a table is."""

    tgid: int
    started_ns: int
    uid: int
    token: str

    @property
    def name(self) -> str:
        """Of its file; no dots: the file system refuses them."""
        digest = hashlib.blake2b(self.token.encode(), digest_size=16).hexdigest()
        return f"{self.tgid}-{self.started_ns}-{self.uid}-{digest}"


class Pins:
    """A directory of a BPF file system in which this agent alone keeps tables.

    Args:
        directory: made when it is not there; the file system has to be.

    Raises:
        UnsupportedError: it is no BPF file system, or not this user's alone.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            if not _is_bpf_fs(directory.parent):
                raise _unsupported(directory, f"{directory.parent} is in no BPF file system")
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700)
            found = directory.lstat()  # a link could be turned to another place later
            if not stat.S_ISDIR(found.st_mode):
                raise _unsupported(directory, "it is no directory")
            if not _is_bpf_fs(directory):
                raise _unsupported(directory, "another file system is mounted there")
        except OSError as error:
            raise _unsupported(directory, f"{error.filename or directory}: {error.strerror}") from error
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise _unsupported(directory, "others than the agent's user can get at it")
        self._unclaimed = self._names()

    def _names(self) -> set[str]:
        return {found.name for found in self.directory.iterdir() if _NAME.fullmatch(found.name)}

    @property
    def unclaimed(self) -> int:
        """Tables of an agent before this one whose processes have not come yet."""
        return len(self._unclaimed)

    def keep(self, owner: Owner, table: Table) -> None:
        """Pin a table; what cannot be pinned works all the same, until the agent ends."""
        try:
            table.slots.pin(str(self.directory / owner.name))
        except BpfError as error:
            logger.warning("the table of process %d will not survive the agent: %s", owner.tgid, error)

    def take(self, owner: Owner) -> Map | None:
        """Return the slots that an agent before this one kept for a process; None when there are none."""
        name = owner.name
        if name not in self._unclaimed:
            return None
        self._unclaimed.discard(name)
        try:
            return Map.pinned(str(self.directory / name), name="slots", key_size=4, value_size=SLOT_BYTES)
        except BpfError as error:
            logger.warning("the table kept for process %d cannot be used: %s", owner.tgid, error)
            self._remove(name)
            return None

    def drop(self, owner: Owner) -> None:
        """Keep a process's table no more; idempotent."""
        self._remove(owner.name)

    def drop_dead(self) -> None:
        """Remove the tables of processes that have ended. Where ids are the kernel's: /proc is not of a namespace."""
        for name in sorted(self._unclaimed):
            tgid, started_ns = (int(part) for part in name.split("-")[:2])
            if not _runs(tgid, started_ns):
                self._unclaimed.discard(name)
                self._remove(name)

    def drop_unclaimed(self) -> None:
        """Remove the tables whose processes did not come."""
        for name in self._unclaimed:
            self._remove(name)
        self._unclaimed.clear()

    def _remove(self, name: str) -> None:
        path = self.directory / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the pinned table %s stays: %s", path, error.strerror)


def _unsupported(directory: Path, reason: str) -> UnsupportedError:
    return UnsupportedError(f"keeping tables in {directory}", reason, "--pin-dir names another place, or '' for none")


def _is_bpf_fs(directory: Path) -> bool:
    """Python's statvfs() does not have the type: the mount table has it."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split()
        if fields[2] == wanted and fields[fields.index("-") + 1] == "bpf":
            return True
    return False


def _runs(tgid: int, started_ns: int) -> bool:
    try:
        fields = Path(f"/proc/{tgid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return False
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[19]) == started_ns * ticks // 1_000_000_000
