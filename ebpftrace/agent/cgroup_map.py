# SPDX-License-Identifier: Apache-2.0
"""A map of a BPF object, kept filled with the cgroups whose paths match: how programs filter by cgroup in the kernel.

    with CgroupIdMap(config, obj.map(config.name), program="sched") as groups:   # filled once when this returns
        groups.start()                                                           # kept so from here on

New cgroups are in the map within milliseconds where inotify can be used; otherwise, and where the kernel allows too
few watches, the tree is walked each second. Every minute it is walked in any case.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Self

from ebpftrace.agent.cgroup_tree import Group, TreeWatch, find_root, walk
from ebpftrace.agent.logs import fields
from ebpftrace.agent.snapshot import CgroupMapSnapshot
from ebpftrace.errors import BpfError, ConfigError

if TYPE_CHECKING:
    import re
    from pathlib import Path

    from ebpftrace.config.model import CgroupIdMapConfig, ProgramConfig
    from ebpftrace.kernel.maps import Map
    from ebpftrace.programs.knobs import HasMaps

logger = logging.getLogger("ebpftrace.agent")

MAX_GROUPS = 65_536
"""Groups of one tree that are looked at; a machine with more is walked each second and those beyond are not seen."""

_KEY_BYTES = {"hash": 8, "cgrp_storage": 4}
_VALUE_BYTES = 8
_MARK = (1).to_bytes(_VALUE_BYTES, "little")


class CgroupIdMap:
    """Fills the map when made, and keeps it filled between start() and close().

    Args:
        config: which cgroups; a pattern may match the path below the mount point ("/system.slice/cron.service") or,
            as ebpf_exporter's do, the whole of it ("/sys/fs/cgroup/system.slice/cron.service").
        target: the map; it must stay open until close().
        program: for errors and counters.
        root: the tree; None = the one that `find_root` finds.
        poll_s: time between walks where the kernel sends no word of changes.
        rescan_s: time between walks where it does.
        watch: use inotify.

    Raises:
        ConfigError: the map has not the sizes that its type asks for, or a pattern is none.
        UnsupportedError: no cgroup file system is mounted.
    """

    def __init__(
        self,
        config: CgroupIdMapConfig,
        target: Map,
        *,
        program: str,
        root: Path | None = None,
        poll_s: float = 1.0,
        rescan_s: float = 60.0,
        watch: bool = True,
    ) -> None:
        self._config = config
        self._map = target
        self._program = program
        self._patterns = _compile(config, program)
        _check_sizes(config, target, program)
        self._root = str(root if root is not None else find_root())
        self._poll_s, self._rescan_s = poll_s, rescan_s
        self._entries: dict[str, int] = {}
        self._added = self._removed = self._failed = self._walks = 0
        self._watch = self._open_watch() if watch else None
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._sync()

    def _open_watch(self) -> TreeWatch | None:
        try:
            return TreeWatch()
        except OSError as error:
            self._say_polling(error)
            return None

    def _say_polling(self, error: OSError) -> None:
        logger.warning(
            "cgroups are walked each second, for inotify cannot be used: %s", error.strerror,
            extra=fields(program=self._program, hint="raise fs.inotify.max_user_watches or max_user_instances"),
        )  # fmt: skip

    # --- what is in the map

    def _matches(self, path: str) -> bool:
        below = path[len(self._root) :] or "/"
        # the peer's tree is always at this place, wherever this machine has it
        return any(pattern.search(below) or pattern.search("/sys/fs/cgroup" + below) for pattern in self._patterns)

    def _sync(self) -> None:
        """Look at all groups; put in and take out what has changed."""
        self._walks += 1
        seen: dict[str, int] = {}
        for group in walk(self._root, limit=MAX_GROUPS):
            self._watch_group(group.path)
            if self._matches(group.path):
                seen[group.path] = group.id
        for path, number in list(self._entries.items()):
            if seen.get(path) != number:
                self._take_out(path)
        for path, number in seen.items():
            self._put_in(Group(path, number))

    def _appeared(self, path: str) -> None:
        for group in walk(path, limit=MAX_GROUPS):  # groups may have been made in it before it was watched
            self._watch_group(group.path)
            if self._matches(group.path):
                self._put_in(group)

    def _watch_group(self, path: str) -> None:
        if self._watch is None:
            return
        try:
            self._watch.add(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                self._say_polling(error)
                self._watch.close()
                self._watch = None

    def _put_in(self, group: Group) -> None:
        if self._entries.get(group.path) == group.id:
            return
        try:
            self._update(group)
        except FileNotFoundError:  # it went
            return
        except (BpfError, OSError) as error:
            self._fail(group.path, error)
        else:
            self._entries[group.path] = group.id
            self._added += 1

    def _update(self, group: Group) -> None:
        if self._config.type == "hash":
            self._map.update(group.id.to_bytes(8, "little"), _MARK)
            return
        fd = os.open(group.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._map.update(fd.to_bytes(4, "little"), _MARK)
        finally:
            os.close(fd)

    def _take_out(self, path: str) -> None:
        number = self._entries.pop(path)
        self._removed += 1
        if self._config.type == "cgrp_storage":  # it went with its group
            return
        try:
            self._map.delete(number.to_bytes(8, "little"))
        except BpfError as error:
            if error.errno != errno.ENOENT:  # a program may have removed it
                self._fail(path, error)

    def _fail(self, path: str, error: Exception) -> None:
        self._failed += 1
        if self._failed == 1:
            logger.warning(
                "the map of cgroups is not complete: %s", error,
                extra=fields(program=self._program, map=self._map.name, cgroup=path, later="counted"),
            )  # fmt: skip

    # --- keeping it so

    def start(self) -> None:
        """Keep the map filled, by a thread; idempotent."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="ebpftrace-cgroups", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        next_walk = time.monotonic()
        while not self._stopping:
            try:
                next_walk = self._round(next_walk)
            except Exception as error:  # noqa: BLE001  (the thread must live: a filter that is not kept lies)
                self._fail(self._root, error)
                self._wait_for_end(self._poll_s)
                next_walk = time.monotonic()

    def _round(self, next_walk: float) -> float:
        """Walk if it is time, then wait for a change or for the next walk; return when that is."""
        now = time.monotonic()
        if now >= next_walk:
            self._sync()
            next_walk = now + (self._poll_s if self._watch is None else self._rescan_s)
        if self._wait(next_walk - time.monotonic()) and not self._apply():
            return now
        return next_walk

    def _wait_for_end(self, timeout_s: float) -> None:
        select.select([self._wake_read], [], [], timeout_s)

    def _wait(self, timeout_s: float) -> bool:
        """Wait for a change; tell whether there is one."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if self._watch is not None:
            poll.register(self._watch.fd, select.POLLIN)
        ready = poll.poll(max(0.0, timeout_s) * 1000)
        return any(fd != self._wake_read for fd, _ in ready)

    def _apply(self) -> bool:
        """Do what the kernel said has changed; False when all must be looked at."""
        watch = self._watch
        for change in watch.changes() if watch is not None else ():
            if not change.path:
                return False
            if change.appeared:
                self._appeared(change.path)
            else:
                for path in [each for each in self._entries if _is_below(each, change.path)]:
                    self._take_out(path)
        return self._watch is watch  # given up meanwhile: walk from now on

    def snapshot(self) -> CgroupMapSnapshot:
        """Return the counters; from any thread."""
        return CgroupMapSnapshot(
            program=self._program,
            entries=len(self._entries),
            added=self._added,
            removed=self._removed,
            failed=self._failed,
            walks=self._walks,
        )

    def close(self) -> None:
        """End the thread; the map keeps what is in it. Idempotent."""
        self._stopping = True
        if self._wake_write >= 0:
            os.write(self._wake_write, b"x")
            if self._thread is not None:
                self._thread.join()
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(top + "/")


def _compile(config: CgroupIdMapConfig, program: str) -> list[re.Pattern[str]]:
    from ebpftrace.decoders.patterns import compile_pattern

    try:
        return [compile_pattern(pattern) for pattern in config.regexps]
    except ConfigError as error:
        raise ConfigError(f"program {program!r}: cgroup_id_map: {error}") from None


def _check_sizes(config: CgroupIdMapConfig, target: Map, program: str) -> None:
    key = _KEY_BYTES[config.type]
    if (target.key_size, target.value_size) != (key, _VALUE_BYTES):
        raise ConfigError(
            f"program {program!r}: cgroup_id_map: map {target.name!r} has keys of {target.key_size} and values of "
            f"{target.value_size} bytes; type {config.type!r} takes keys of {key} and values of {_VALUE_BYTES}"
        )


def cgroup_map_of(config: ProgramConfig, loaded: HasMaps, name: str) -> CgroupIdMap | None:
    """Return what keeps a loaded program's map of cgroup ids filled; None when its file asks for none.

    Args:
        config: what the file says.
        loaded: the program.
        name: what it is called.
    """
    if config.cgroup_id_map is None:
        return None
    return CgroupIdMap(config.cgroup_id_map, loaded.map(config.cgroup_id_map.name), program=name)
