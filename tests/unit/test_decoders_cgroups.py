# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import os

import pytest

from ebpftrace.decoders import cgroups
from ebpftrace.decoders.cgroups import Cgroup, cgroup, cgroup_path, parse_mounts, walk
from ebpftrace.decoders.lookups import Cache, Snapshot

HYBRID = r"""22 1 0:21 / /proc rw,nosuid - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:3 - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/uni\040fied rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw

rubbish
"""


def test_parse_mounts():
    """Hierarchies of version 2 come first, whatever else is mounted."""
    assert ["/sys/fs/cgroup/uni fied", "/sys/fs/cgroup/cpu"] == parse_mounts(HYBRID)


@pytest.fixture
def tree(tmp_path):
    """Two hierarchies."""
    for path in ("v2/a/b", "v2/c", "v1/a"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "v2/a/cgroup.procs").write_text("")
    return tmp_path


def inode(path):
    return path.stat().st_ino


def test_walk(tree):
    """Every directory is a cgroup, its id is its inode number, and files are none."""
    found = walk([str(tree / "v2"), str(tree / "nothing"), str(tree / "v1")])
    paths = ["v2", "v2/a", "v2/a/b", "v2/c", "v1", "v1/a"]
    mounts = {path: str(tree / path.partition("/")[0]) for path in paths}

    assert {inode(tree / path): Cgroup(str(tree / path), mounts[path]) for path in paths} == found


def test_walk_ends(tree, monkeypatch):
    """A walk through very many cgroups ends somewhere."""
    monkeypatch.setattr(cgroups, "_MOST", 3)

    assert 3 == len(walk([str(tree / "v2")]))


@pytest.fixture
def without_handles(tree, monkeypatch):
    """This process may not open files by handle."""

    def refuse(number, mount):
        raise PermissionError(mount)

    mounts = [str(tree / "v2"), str(tree / "v1")]
    monkeypatch.setattr(cgroups, "by_handle", refuse)
    monkeypatch.setattr(cgroups, "_walked", Snapshot(lambda: walk(mounts)))
    monkeypatch.setattr(cgroups, "_cgroups", Cache(cgroups._ask, found_s=60))
    return tree


def test_cgroup_without_handles(without_handles):
    """Where the kernel does not tell a path by its id, the directories do."""
    tree = without_handles
    number = inode(tree / "v2/a/b")

    assert (str(tree / "v2/a/b"), "/a/b") == (cgroup(number), cgroup_path(str(number)))
    assert (str(tree / "v1/a"), "/a") == (cgroup(inode(tree / "v1/a")), cgroup_path(inode(tree / "v1/a")))
    assert "/" == cgroup_path(inode(tree / "v2"))


@pytest.mark.usefixtures("without_handles")
@pytest.mark.parametrize("value", [0, -1, 1 << 64, (1 << 64) - 1, "x", ""])
def test_unknown_cgroup(value):
    """What is no cgroup's id says so."""
    assert f"unknown_cgroup_id:{value}" == cgroup(value) == cgroup_path(value)


def test_removed_cgroup(without_handles):
    """A cgroup that was known stays so after its end."""
    path = without_handles / "v2/c"
    number = inode(path)
    before = cgroup(number)
    path.rmdir()

    assert str(path) == before == cgroup(number)


def test_handle_of_no_hierarchy(tmp_path):
    """A directory that is not there is an error, which is where walking starts."""
    with pytest.raises(FileNotFoundError):
        cgroups.by_handle(1, str(tmp_path / "nothing"))


def test_descriptors(tmp_path):
    """A look-up leaves no descriptor open, whatever comes of it."""
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with contextlib.suppress(OSError):
        cgroups.by_handle(1, str(tmp_path))
    after = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208

    assert len(before) == len(after)
