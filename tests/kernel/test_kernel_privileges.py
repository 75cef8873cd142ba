# SPDX-License-Identifier: Apache-2.0
"""What the agent gives up after its programs are attached, and that what it goes on doing works without."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from harness import run

from ebpftrace.agent import landlock
from ebpftrace.agent.privileges import read_capabilities

STATUS = Path("/proc/self/status")
KEPT = {"CapInh": 0, "CapPrm": 1 << 34 | 1 << 38 | 1 << 39, "CapEff": 1 << 34 | 1 << 39, "CapBnd": 0, "CapAmb": 0}

needs_setpcap = pytest.mark.skipif(
    not read_capabilities().effective >> 8 & 1, reason="without CAP_SETPCAP the bounding set cannot be closed"
)


def status(task="self"):
    """Capability sets, no_new_privs and seccomp of a process or thread, as the kernel shows them."""
    lines = Path(f"/proc/self/task/{task}/status" if task != "self" else STATUS).read_text().splitlines()
    found = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {name: int(found[name], 16) for name in (*KEPT, "NoNewPrivs")}


def loaded(name="sched"):
    """A shipped program, loaded and attached."""
    from ebpftrace.kernel.object import BpfObject
    from ebpftrace.programs import find

    made = BpfObject(name, find(name).object_bytes())
    made.load()
    made.attach()
    return made


def attempt(action):
    """What became of it: "ok", or the name of the errno."""
    import errno

    from ebpftrace.errors import BpfError

    try:
        action()
    except (OSError, BpfError) as error:
        return errno.errorcode[error.errno]
    return "ok"


def reduced(keep):
    """Attach, give up, and look at this thread, one started since, and a program that is run."""
    from ebpftrace.agent import privileges

    obj = loaded()
    kept = privileges.reduce(privileges.parse_keep(keep))
    of_thread = []
    thread = threading.Thread(target=lambda: of_thread.append(status(threading.get_native_id())))
    thread.start()
    thread.join()
    child = subprocess.run(["cat", STATUS], capture_output=True, text=True, check=True).stdout
    found = {
        "main": status(),
        "thread": of_thread[0],
        "child": [line.split() for line in child.splitlines() if line.startswith(("CapPrm", "CapEff"))],
        "permitted": kept.permitted,
        "effective": kept.effective,
        "can_load": kept.can_load,
        "load": attempt(lambda: loaded().close()),
        "regain": attempt(lambda: os.setuid(0)) and status()["CapEff"],
    }
    obj.close()
    return found


@needs_setpcap
def test_reduced():
    """Main and later threads keep three capabilities, of which loading's is not effective; what they run has none."""
    found = run(reduced, "auto").value
    expected = KEPT | {"NoNewPrivs": 1}

    assert expected == found["main"]
    assert expected == found["thread"]
    assert [["CapPrm:", "0" * 16], ["CapEff:", "0" * 16]] == found["child"]
    assert ["CAP_SYSLOG", "CAP_PERFMON", "CAP_BPF"] == found["permitted"]
    assert ["CAP_SYSLOG", "CAP_BPF"] == found["effective"]
    assert found["can_load"]
    assert "EPERM" == found["load"]
    assert KEPT["CapEff"] == found["regain"]


@needs_setpcap
def test_none():
    """With nothing kept there is nothing: not for user id 0 either."""
    found = run(reduced, "none").value

    assert dict.fromkeys(KEPT, 0) | {"NoNewPrivs": 1} == found["main"]
    assert not found["can_load"]
    assert "EPERM" == found["load"]


def with_sys_admin():
    """Give up with CAP_SYS_ADMIN and CAP_SETPCAP, as in a container whose runtime knows no newer names."""
    from ebpftrace.agent import privileges

    mask = privileges.mask_of({"CAP_SYS_ADMIN", "CAP_SETPCAP"})
    privileges.write_capabilities(privileges.CapabilitySets(mask, mask, 0))
    obj = loaded()
    kept = privileges.reduce(privileges.AUTO)
    with kept.raised():
        again = attempt(lambda: loaded().close())
    obj.close()
    return {"permitted": kept.permitted, "missing": kept.missing, "can_load": kept.can_load, "again": again}


@needs_setpcap
def test_sys_admin():
    """Where the old capability is all there is, it is kept in place of those that are not."""
    found = run(with_sys_admin).value

    assert ["CAP_SYS_ADMIN"] == found["permitted"]
    assert ["CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG"] == found["missing"]
    assert (True, "ok") == (found["can_load"], found["again"])


def goes_on(keep):
    """With privileges given up: read a ring, count drops, load again while raised, and be little again."""
    from ebpftrace.agent import privileges
    from ebpftrace.kernel.maps import Map
    from ebpftrace.kernel.ringbuf import RingReader
    from ebpftrace.programs.core import read_drops

    obj = loaded()
    kept = privileges.reduce(privileges.parse_keep(keep))
    found = {}
    with RingReader() as reader:
        reader.add(obj.map("events"), 0)
        found["read"] = attempt(lambda: reader.wait(interval_ms=10, timeout_ms=20))
    found["drops"] = sum(read_drops(obj).values())
    found["update"] = attempt(lambda: obj.map("drops").lookup_per_cpu(bytes(4)))
    found["symbols"] = not Path("/proc/kallsyms").read_text().startswith("0000000000000000")
    with kept.raised():
        found["raised"] = attempt(lambda: loaded("exec").close())
    found["create"] = attempt(lambda: Map.create_array("x", value_size=8, max_entries=1).close())
    found["after"] = status()
    obj.close()
    return found


@needs_setpcap
def test_goes_on():
    """Reading rings, counters and symbols takes nothing that was given up, and a reload works while raised."""
    found = run(goes_on, "auto").value

    assert {
        "read": "ok",
        "drops": 0,
        "update": "ok",
        "symbols": True,
        "raised": "ok",
        "create": "ok",
        "after": KEPT | {"NoNewPrivs": 1},
    } == found


def unprivileged_user():
    """What a service with a user of its own and three ambient capabilities does."""
    import ctypes

    from ebpftrace.agent import privileges
    from ebpftrace.agent.linux import prctl
    from ebpftrace.programs import find
    from ebpftrace.programs.core import read_drops

    loaded().close()  # import everything, as the new user cannot read the directories of whoever runs the tests
    data = find("sched").object_bytes()
    kept = privileges.mask_of(privileges.AUTO)
    prctl(8, 1)  # PR_SET_KEEPCAPS
    for call in (os.setresgid, os.setresuid):
        call(65534, 65534, 65534)
    privileges.write_capabilities(privileges.CapabilitySets(kept, kept, kept))
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: or /proc/self belongs to root, which an exec would have mended
    for name in privileges.AUTO:
        prctl(47, 2, privileges.NAMES.index(name))  # PR_CAP_AMBIENT_RAISE
    from ebpftrace.kernel.object import BpfObject

    with BpfObject("sched", data) as obj:
        obj.load()
        obj.attach()
        reduced = privileges.reduce(privileges.AUTO)
        found = {"drops": sum(read_drops(obj).values()), "uid": os.getuid(), "main": status()}
        with reduced.raised(), BpfObject("sched", data) as again:
            found["again"] = attempt(again.load)
    return found | {"locked": reduced.locked, "can_load": reduced.can_load}


@needs_setpcap
def test_unprivileged_user():
    """A user other than root with three ambient capabilities loads, attaches, gives up and loads again."""
    found = run(unprivileged_user).value
    bounding = found["main"].pop("CapBnd")

    assert {name: value for name, value in KEPT.items() if name != "CapBnd"} | {"NoNewPrivs": 1} == found["main"]
    assert bounding  # it takes CAP_SETPCAP to close it; with no_new_privs it is worth nothing
    assert (0, 65534, "ok", False, True) == tuple(
        found[name] for name in ("drops", "uid", "again", "locked", "can_load")
    )


def cgroup_watched():
    """Can all of the cgroup tree be walked and watched?"""
    from ebpftrace.agent.cgroup_tree import TreeWatch, find_root, walk

    groups = list(walk(str(find_root()), limit=10))
    with TreeWatch() as watch:
        for group in groups:
            watch.add(group.path)
        return "watched" if groups and len(groups) == len(watch) else "not watched"


def confined(exporter, other):
    """All of it at once, in the agent's order, with a program that was attached before."""
    from ebpftrace.agent import privileges
    from ebpftrace.kernel.ringbuf import RingReader
    from ebpftrace.programs.core import read_drops

    obj = loaded()
    kept = privileges.reduce(privileges.AUTO)
    landlock.restrict(connect_ports=[exporter])
    found = {}
    with RingReader() as reader:
        reader.add(obj.map("events"), 0)
        found["read"] = attempt(lambda: reader.wait(interval_ms=10, timeout_ms=20))
    found["drops"] = sum(read_drops(obj).values())
    with kept.raised():
        found["reload"] = attempt(lambda: loaded("exec").close())
    found["exporter"] = attempt(lambda: socket.create_connection(("127.0.0.1", exporter), 2).close())
    found["other"] = attempt(lambda: socket.create_connection(("127.0.0.1", other), 2).close())
    found["command of init"] = attempt(lambda: Path("/proc/1/comm").read_text())
    found["cgroup of init"] = attempt(lambda: Path("/proc/1/cgroup").read_text())
    found["memory of init"] = attempt(lambda: Path("/proc/1/maps").read_text())
    found["write"] = attempt(lambda: Path("/etc/ebpftrace-test").write_text("x"))
    found["cgroups"] = cgroup_watched()
    obj.close()
    return found


@pytest.mark.skipif(landlock.probe()[0] < 4, reason="this kernel's Landlock knows no ports")
def test_confined():
    """Under Landlock, too, rings are read and programs loaded again; files, other processes and ports are closed."""
    with socket.create_server(("127.0.0.1", 0)) as exporter, socket.create_server(("127.0.0.1", 0)) as other:
        found = run(confined, exporter.getsockname()[1], other.getsockname()[1]).value

    assert {
        "read": "ok",
        "drops": 0,
        "reload": "ok",
        "exporter": "ok",
        "other": "EACCES",
        "command of init": "ok",
        "cgroup of init": "ok",
        "memory of init": "EACCES",
        "write": "EACCES",
        "cgroups": "watched",
    } == found


# --- maps of cgroup ids

STORAGE = r"""
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct {
	__uint(type, 32); /* BPF_MAP_TYPE_CGRP_STORAGE, from 6.2 on */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} groups SEC(".maps");
"""


@pytest.fixture
def group():
    """A cgroup of the tree that is found, removed in the end, and the tree's root."""
    from ebpftrace.agent.cgroup_tree import find_root

    root = find_root()
    made = root / f"ebpftrace-test-{os.getpid()}"
    made.mkdir()
    yield root, made
    for each in (made / "inner", made):
        if each.exists():
            each.rmdir()


def wait_for(condition, timeout_s=5.0):
    """Seconds until it held; fails when it never did."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s
        time.sleep(0.001)
    return time.monotonic() - started


def test_cgroup_hash(group):
    """A real cgroup's id is in a real hash map soon after its making, and out of it when it goes, without a walk."""
    from ebpftrace.agent.cgroup_map import CgroupIdMap
    from ebpftrace.config.model import CgroupIdMapConfig
    from ebpftrace.kernel.maps import Map

    _, made = group
    config = CgroupIdMapConfig(name="groups", regexps=[f"/{made.name}(/|$)"])
    with (
        Map.create_hash("groups", key_size=8, value_size=8, max_entries=16) as target,
        CgroupIdMap(config, target, program="p") as groups,
    ):
        first = {int.from_bytes(key, "little") for key in target}
        groups.start()
        wait_for(lambda: groups.snapshot().walks == 2)
        (made / "inner").mkdir()
        number = (made / "inner").stat().st_ino.to_bytes(8, "little")
        came_s = wait_for(lambda: target.lookup(number) == (1).to_bytes(8, "little"))
        (made / "inner").rmdir()
        went_s = wait_for(lambda: target.lookup(number) is None)
        snapshot = groups.snapshot()

    assert {made.stat().st_ino} == first
    assert came_s < 1.0  # milliseconds on a machine that has nothing else to do
    assert went_s < 1.0
    assert (1, 2, 1, 0, 2) == (
        snapshot.entries,
        snapshot.added,
        snapshot.removed,
        snapshot.failed,
        snapshot.walks,
    )


def test_cgroup_storage(group, tmp_path):
    """Storage attached to cgroups is filled through descriptors of them."""
    from ebpftrace.agent.cgroup_map import CgroupIdMap
    from ebpftrace.agent.cgroup_tree import find_root
    from ebpftrace.config.model import CgroupIdMapConfig
    from ebpftrace.errors import LoadError
    from ebpftrace.kernel.object import BpfObject

    if "cgroup2" not in Path("/proc/mounts").read_text().split():
        pytest.skip("no cgroup v2 is mounted")
    (tmp_path / "storage.bpf.c").write_text(STORAGE)
    compiler = shutil.which("clang-19") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no clang to compile a map with")
    headers = f"/usr/include/{platform.machine()}-linux-gnu"
    source, target = tmp_path / "storage.bpf.c", tmp_path / "storage.bpf.o"
    subprocess.run(
        [compiler, "-g", "-O2", "-target", "bpf", "-idirafter", headers, "-c", source, "-o", target], check=True
    )
    root, made = group
    config = CgroupIdMapConfig(name="groups", regexps=[f"^/{made.name}$"], type="cgrp_storage")
    with BpfObject("storage", (tmp_path / "storage.bpf.o").read_bytes()) as obj:
        try:
            obj.load()
        except LoadError as error:
            pytest.skip(f"no cgroup storage on this kernel: {error}")
        target = obj.map("groups")
        with CgroupIdMap(config, target, program="p") as groups:
            failed = groups.snapshot().failed
            values = []
            for path in (made, find_root()):
                fd = os.open(path, os.O_RDONLY)
                values.append(target.lookup(fd.to_bytes(4, "little")))
                os.close(fd)

    assert root == find_root()
    assert 0 == failed
    assert [(1).to_bytes(8, "little"), None] == values
