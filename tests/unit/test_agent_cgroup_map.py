# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import time

import pytest

from ebpftrace.agent import cgroup_map
from ebpftrace.agent.cgroup_map import CgroupIdMap
from ebpftrace.agent.snapshot import CgroupMapSnapshot
from ebpftrace.config.model import CgroupIdMapConfig
from ebpftrace.errors import BpfError, ConfigError

HASH = CgroupIdMapConfig(name="groups", regexps=[r"^/wanted($|/)"])


class FakeMap:
    """A hash map in memory; plain directories stand in for cgroups.

    Args:
        room: entries that it takes.
    """

    def __init__(self, key_size=8, value_size=8, room=100):
        self.name, self.key_size, self.value_size, self.room = "groups", key_size, value_size, room
        self.entries = {}

    def update(self, key, value):
        """Set; E2BIG when full."""
        if key not in self.entries and len(self.entries) >= self.room:
            raise BpfError("update map 'groups'", errno=errno.E2BIG)
        self.entries[key] = value

    def delete(self, key):
        """Remove; ENOENT when it is not there."""
        if key not in self.entries:
            raise BpfError("remove a key of map 'groups'", errno=errno.ENOENT)
        del self.entries[key]

    def ids(self):
        """The keys as numbers."""
        return {int.from_bytes(key, "little") for key in self.entries}


def inodes(*paths):
    return {path.stat().st_ino for path in paths}


def until(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def tree(tmp_path):
    for name in ("wanted/a", "other/wanted", "wanted-not"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_filled_at_once(tree):
    """The map is filled before anything is started: ids of the matching groups, each with value 1."""
    target = FakeMap()
    with CgroupIdMap(HASH, target, program="p", root=tree) as groups:
        snapshot = groups.snapshot()

    assert inodes(tree / "wanted", tree / "wanted/a") == target.ids()
    assert {(1).to_bytes(8, "little")} == set(target.entries.values())
    assert CgroupMapSnapshot(program="p", entries=2, added=2, walks=1) == snapshot


@pytest.mark.parametrize("watch", [True, False])
def test_kept(tree, watch):
    """Groups that come, with what is in them, are put in, those that go are taken out: by inotify, or by walking."""
    target = FakeMap()
    with CgroupIdMap(HASH, target, program="p", root=tree, poll_s=0.02, watch=watch) as groups:
        groups.start()
        deep = tree / "wanted/b/c/d"
        deep.mkdir(parents=True)
        (tree / "other/more").mkdir()
        everything = inodes(tree / "wanted", tree / "wanted/a", deep, deep.parent, deep.parent.parent)
        came = until(lambda: everything == target.ids())
        deep.rmdir()
        (tree / "wanted/a").rmdir()
        rest = inodes(tree / "wanted", deep.parent, deep.parent.parent)
        went = until(lambda: rest == target.ids())
        snapshot = groups.snapshot()

    assert came
    assert went
    assert (3, 5, 2, 0) == (snapshot.entries, snapshot.added, snapshot.removed, snapshot.failed)
    assert watch == (snapshot.walks == 2)  # when made, and when started


def test_storm(tree):
    """Groups made and removed as fast as can be leave the map as the tree is."""
    target = FakeMap(room=10_000)
    with CgroupIdMap(HASH, target, program="p", root=tree) as groups:
        groups.start()
        for index in range(500):
            made = tree / f"wanted/{index}/x"
            made.mkdir(parents=True)
            if index % 3:
                made.rmdir()
                made.parent.rmdir()
        left = [group for group in (tree / "wanted").rglob("*") if group.is_dir()]
        same = until(lambda: inodes(tree / "wanted", *left) == target.ids())
    snapshot = groups.snapshot()

    assert same
    assert 0 == snapshot.failed
    assert snapshot.entries == snapshot.added - snapshot.removed


def test_peers_patterns(tree):
    """A pattern may be written for the whole path below /sys/fs/cgroup, wherever the tree is mounted here."""
    target = FakeMap()
    config = CgroupIdMapConfig(name="groups", regexps=[r"^/sys/fs/cgroup/wanted$", r"^/$"])
    with CgroupIdMap(config, target, program="p", root=tree):
        pass

    assert inodes(tree, tree / "wanted") == target.ids()


def test_full(tree, caplog):
    """A map without room is one line; what is not in it is counted, and put in when there is room."""
    target = FakeMap(room=1)
    with CgroupIdMap(HASH, target, program="p", root=tree, poll_s=0.02, watch=False) as groups:
        failed = groups.snapshot().failed
        target.room = 10
        groups.start()
        filled = until(lambda: inodes(tree / "wanted", tree / "wanted/a") == target.ids())

    assert 1 == failed
    assert filled
    assert ["the map of cgroups is not complete: cannot update map 'groups': Argument list too long [E2BIG]"] == [
        record.getMessage() for record in caplog.records
    ]


def test_no_watches_left(tree, monkeypatch, caplog):
    """Where the kernel allows no more watches, there is one line and the tree is walked from then on."""

    def refuse(self, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr(cgroup_map.TreeWatch, "add", refuse)
    target = FakeMap()
    with CgroupIdMap(HASH, target, program="p", root=tree, poll_s=0.02) as groups:
        groups.start()
        (tree / "wanted/new").mkdir()
        came = until(lambda: (tree / "wanted/new").stat().st_ino in target.ids())

    assert came
    assert 1 == len(caplog.records)
    assert "inotify cannot be used" in caplog.text


def test_bug_does_not_end_it(tree, monkeypatch, caplog):
    """An error nobody thought of is counted with one line, and the map is kept all the same."""
    target = FakeMap()
    with CgroupIdMap(HASH, target, program="p", root=tree, poll_s=0.02, watch=False) as groups:
        whole, calls = groups._sync, []

        def broken():
            calls.append(1)
            if len(calls) < 3:
                raise RuntimeError("broken")
            whole()

        monkeypatch.setattr(groups, "_sync", broken)
        groups.start()
        (tree / "wanted/new").mkdir()
        came = until(lambda: (tree / "wanted/new").stat().st_ino in target.ids())
        failed = groups.snapshot().failed

    assert came
    assert 2 == failed
    assert 1 == len(caplog.records)


@pytest.mark.parametrize(
    ("config", "sizes", "message"),
    [
        (HASH, (4, 8), r"map 'groups' has keys of 4 and values of 8 bytes; type 'hash' takes keys of 8"),
        (HASH, (8, 1), r"values of 1 bytes"),
        (
            CgroupIdMapConfig(name="groups", regexps=["x"], type="cgrp_storage"),
            (8, 8),
            r"'cgrp_storage' takes keys of 4",
        ),
        (CgroupIdMapConfig(name="groups", regexps=["("]), (8, 8), r"program 'p': cgroup_id_map: .*regexp '\('"),
    ],
)
def test_wrong(tree, config, sizes, message):
    """A map of other sizes, or a pattern that is none, is an error that says which program, map and sizes."""
    with pytest.raises(ConfigError, match=message):
        CgroupIdMap(config, FakeMap(*sizes), program="p", root=tree)


def test_close(tree):
    """Closing leaves the map as it is, frees every descriptor, and may be done twice."""
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    target = FakeMap()
    groups = CgroupIdMap(HASH, target, program="p", root=tree)
    groups.start()
    groups.close()
    groups.close()

    assert before == set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert 2 == len(target.entries)
