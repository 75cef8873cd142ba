# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import time

import pytest

from ebpftrace.agent.cgroup_tree import Change, Group, TreeWatch, find_root, walk
from ebpftrace.errors import UnsupportedError

V1 = "cgroup {0}/memory cgroup rw,memory 0 0\ncgroup {0}/cpu cgroup rw,nosuid,cpu,cpuacct 0 0\n"
V2 = "cgroup2 {0}/unified cgroup2 rw 0 0\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (V1, "/sys/cg/cpu"),
        (V1 + V2, "/sys/cg/unified"),
        ("cgroup2 /sys/fs/c\\040g cgroup2 rw 0 0\n", "/sys/fs/c g"),
        ("cgroup /sys/cg/systemd cgroup rw,name=systemd 0 0\n", "/sys/cg/systemd"),
    ],
)
def test_root(tmp_path, lines, expected):
    """The tree is version 2's wherever that is mounted, else that of version 1's cpu controller."""
    mounts = tmp_path / "mounts"
    mounts.write_text("proc /proc proc rw 0 0\n" + lines.format("/sys/cg"))

    assert expected == str(find_root(mounts))


def test_no_root(tmp_path):
    """Without a cgroup file system, or without /proc, the error says what to mount."""
    mounts = tmp_path / "mounts"
    mounts.write_text("proc /proc proc rw 0 0\n")

    with pytest.raises(UnsupportedError, match="mount -t cgroup2"):
        find_root(mounts)
    with pytest.raises(UnsupportedError, match="mount procfs"):
        find_root(tmp_path / "none")


def test_walk(tmp_path):
    """All directories are found, parents before children, with their inode numbers; files and links are not."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "a/file").touch()
    (tmp_path / "a/link").symlink_to(tmp_path / "c")
    found = list(walk(str(tmp_path), limit=100))

    assert {str(tmp_path / name) for name in (".", "a", "a/b", "c")} == {group.path for group in found}
    assert all(group == Group(group.path, os.stat(group.path).st_ino) for group in found)  # noqa: PTH116
    assert 3 == len(list(walk(str(tmp_path), limit=3)))
    assert [] == list(walk(str(tmp_path / "gone"), limit=100))


def changes(watch, count):
    """What happened, once there are so many; what there was, when none come any more."""
    found, deadline = [], time.monotonic() + 5
    while len(found) < count and time.monotonic() < deadline:
        found += watch.changes()
        time.sleep(0.01)
    return found


def test_watch(tmp_path):
    """Directories made and removed in a watched one are heard of, files are not."""
    with TreeWatch() as watch:
        watch.add(str(tmp_path))
        (tmp_path / "file").touch()
        (tmp_path / "group").mkdir()
        (tmp_path / "group").rmdir()
        found = changes(watch, 2)

    path = str(tmp_path / "group")
    assert [Change(path, appeared=True), Change(path, appeared=False)] == found


def test_watch_moved(tmp_path):
    """After a rename all must be looked at: the paths below have changed."""
    (tmp_path / "a").mkdir()
    with TreeWatch() as watch:
        watch.add(str(tmp_path))
        (tmp_path / "a").rename(tmp_path / "b")
        found = changes(watch, 1)

    assert Change("", appeared=True) in found


def test_watch_forgets(tmp_path):
    """A directory that is gone is watched no more."""
    (tmp_path / "a").mkdir()
    with TreeWatch() as watch:
        watch.add(str(tmp_path / "a"))
        with pytest.raises(FileNotFoundError):
            watch.add(str(tmp_path / "b"))
        before = len(watch)
        (tmp_path / "a").rmdir()
        changes(watch, 1)
        after = len(watch)

    assert (1, 0) == (before, after)
