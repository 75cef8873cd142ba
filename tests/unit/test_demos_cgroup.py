# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebpftrace.demos.cgroup import CpuQuota
from ebpftrace.errors import UnsupportedError


@pytest.fixture
def quota():
    """A quota on this machine."""
    try:
        made = CpuQuota(25)
    except UnsupportedError as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture
def v2(tmp_path):
    """A procfs and a cgroup v2 tree in plain files, as in a login session under systemd."""
    tree, proc = tmp_path / "cgroup", tmp_path / "proc"
    own = tree / "user.slice/session.scope"
    own.mkdir(parents=True)
    (tree / "cgroup.controllers").write_text("cpuset cpu io\n")
    (tree / "cgroup.subtree_control").write_text("cpu memory\n")
    (tree / "user.slice/cgroup.subtree_control").write_text("memory\n")
    (proc / "self").mkdir(parents=True)
    (proc / "self/mounts").write_text(f"proc /proc proc rw 0 0\ncgroup2 {tree} cgroup2 rw,nosuid 0 0\n")
    (proc / "self/cgroup").write_text("0::/user.slice/session.scope\n")
    return tree, proc


def test_limits_a_process(quota):
    """A process in the group gets its part of a CPU, and the kernel counts what it was kept from."""
    spin = "end = time.time() + 0.5\nwhile time.time() < end: pass\nprint(time.process_time())"
    code = f"import sys, time\nsys.stdin.read(1)\n{spin}"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as busy:
        quota.add(busy.pid)
        used, _ = busy.communicate("x")

    assert float(used) < 0.35
    assert quota.throttled_ns() > 50_000_000


def test_removed_with_a_process_in_it(quota):
    """Closing moves what still runs back to where it came from, removes the group, and may be done twice."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        quota.add(child.pid)
        quota.close()
        quota.close()
        assert quota.path.name not in Path(f"/proc/{child.pid}/cgroup").read_text()
        child.communicate(b"\n")

    assert not quota.path.exists()


def test_stale_groups_go(quota):
    """A group that a killed demo left is removed by the next; one whose demo runs stays."""
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    stale = quota.path.with_name(f"ebpftrace-demo-{dead.stdout.strip()}")
    alive = quota.path.with_name("ebpftrace-demo-1")
    try:
        stale.mkdir()
        alive.mkdir()
        quota.close()
        with CpuQuota(50):
            assert (False, True) == (stale.exists(), alive.exists())
    finally:
        for group in (stale, alive):
            if group.exists():
                group.rmdir()


def test_v2_goes_up_to_a_group_that_hands_cpu_on(v2, monkeypatch):
    """On v2 the group is made where the cpu controller reaches children, not below the session's own group."""
    tree, proc = v2
    made = []
    monkeypatch.setattr(CpuQuota, "_limit", lambda self: made.append(self.path.parent))
    monkeypatch.setattr(CpuQuota, "_empty", lambda self: None)

    with CpuQuota(25, proc) as quota:
        assert 2 == quota.version

    assert [tree] == made
    assert [] == list(tree.glob("ebpftrace-demo-*"))


def test_v2_files(v2):
    """On v2 the quota is written to cpu.max, and the throttled time read from microseconds."""
    tree, proc = v2
    group = tree / f"ebpftrace-demo-{os.getpid()}"
    with pytest.raises(UnsupportedError, match=r"cpu\.max.*No such file"):  # a plain directory has none
        CpuQuota(25, proc)
    assert not group.exists()

    quota = CpuQuota.__new__(CpuQuota)
    quota.percent, quota.version, quota.path = 25, 2, tree
    (tree / "cpu.max").write_text("max 100000")
    (tree / "cpu.stat").write_text("usage_usec 5\nthrottled_usec 1234\n")
    quota._limit()

    assert "25000 100000" == (tree / "cpu.max").read_text()
    assert 1_234_000 == quota.throttled_ns()


def test_no_controller(v2):
    """Without the cpu controller anywhere the error says so, and how to have it where that is known."""
    tree, proc = v2
    (tree / "cgroup.subtree_control").write_text("memory\n")
    with pytest.raises(UnsupportedError, match=r"echo \+cpu"):
        CpuQuota(25, proc)

    (tree / "cgroup.controllers").write_text("memory\n")
    with pytest.raises(UnsupportedError, match="no cgroup file system with the cpu controller"):
        CpuQuota(25, proc)
