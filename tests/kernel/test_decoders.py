# SPDX-License-Identifier: Apache-2.0
"""Decoders that ask the kernel, against what the kernel says elsewhere."""

from __future__ import annotations

import contextlib
import re
import struct
import subprocess
import sys
import uuid
from pathlib import Path

import machine
import pytest

from ebpftrace.config.model import DecoderConfig
from ebpftrace.decoders import cgroups, chain
from ebpftrace.decoders.symbols import KERNEL

FRAME = re.compile(r"\[<0>\] (?P<name>\S+)\+(?P<offset>0x[0-9a-f]+)/0x[0-9a-f]+(?: \[\w+\])?$", re.MULTILINE)


@contextlib.contextmanager
def new_cgroup(mount):
    """A cgroup below `mount`."""
    path = Path(mount, f"ebpftrace-test-{uuid.uuid4().hex[:8]}")
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


def decode(value, size, *names):
    """The text of a number in the label form."""
    decoders = chain("raw", size, [DecoderConfig(name) for name in names])
    return decoders.run(value.to_bytes(size, sys.byteorder))


def _refuse(number, mount):
    raise PermissionError(mount)


@pytest.mark.parametrize("handles", [True, False])
def test_cgroup(handles, monkeypatch):
    """A new cgroup of every hierarchy is found by its id, by a walk as well as by a file handle."""
    if not handles:
        monkeypatch.setattr(cgroups, "by_handle", _refuse)
    hierarchies = cgroups.parse_mounts(Path("/proc/self/mountinfo").read_text())
    for mount in hierarchies[:1] + hierarchies[-1:]:
        with new_cgroup(mount) as path:
            monkeypatch.setattr(cgroups, "_walked", cgroups.Snapshot(lambda: cgroups.walk(cgroups._mounts())))
            number = path.stat().st_ino
            others = [Path(other) for other in hierarchies[: hierarchies.index(mount)]]
            if any(number == directory.stat().st_ino for top in others for directory in top.rglob("*/")):
                continue  # an id that an earlier hierarchy uses as well

            assert str(path) == decode(number, 8, "uint", "cgroup")
            assert f"/{path.name}" == decode(number, 8, "uint", "cgroup_path")


def test_removed_cgroup():
    """A cgroup that was looked up keeps its name after its end; one that was not has none."""
    mount = cgroups.parse_mounts(Path("/proc/self/mountinfo").read_text())[0]
    with new_cgroup(mount) as path:
        number = path.stat().st_ino
        before = decode(number, 8, "uint", "cgroup")
    with new_cgroup(mount) as other:
        unseen = other.stat().st_ino

    assert str(path) == before == decode(number, 8, "uint", "cgroup")
    assert cgroups.by_handle(unseen, mount) is None


def test_file_of_a_cgroup():
    """The files of a cgroup have ids of the same series, and are no cgroups."""
    mount = cgroups.parse_mounts(Path("/proc/self/mountinfo").read_text())[0]
    with new_cgroup(mount) as path:
        assert cgroups.by_handle((path / "cgroup.procs").stat().st_ino, mount) is None


def test_kernel_stack():
    """A stack reads like that of a sleeping process in /proc."""
    child = subprocess.Popen(["/bin/sleep", "60"])
    try:
        machine.until(lambda: "nanosleep" in Path(f"/proc/{child.pid}/stack").read_text())
        text = Path(f"/proc/{child.pid}/stack").read_text()
    finally:
        child.kill()
        child.wait()
    starts = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, _, name = line.split()[:3]
        starts.setdefault(name, []).append(int(address, 16))
    frames = [frame for frame in FRAME.finditer(text) if len(starts[frame["name"]]) == 1]
    addresses = [starts[frame["name"]][0] + int(frame["offset"], 16) for frame in frames]
    data = struct.pack(f"={len(addresses)}Q8x", *addresses)

    assert len(frames) >= 3
    assert [frame[0].removeprefix("[<0>] ") for frame in frames] == _stack("kernel_stack", data)
    assert [frame["name"] for frame in frames] == _stack("kstack", data)


def _stack(name, data):
    return chain("raw", len(data), [DecoderConfig(name)]).run(data).splitlines()


def test_every_symbol():
    """Every symbol is found by its address, under one of its names."""
    KERNEL.prepare()
    names = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, kind, name = line.split()[:3]
        if kind not in "aA":
            names.setdefault(int(address, 16), set()).add(name)
    wrong = [
        address
        for address, known in list(names.items())[::100]
        if decode(address, 8, "ksym") not in known and not any(name.startswith((".L", "$")) for name in known)
    ]

    assert [] == wrong


def test_without_the_capability():
    """A process that may not see addresses says so once, and shows numbers."""
    code = (
        "import logging; logging.basicConfig(); from ebpftrace.decoders import chain; "
        "from ebpftrace.config.model import DecoderConfig as D; run = chain('unsigned', 8, [D('ksym')]).run; "
        "print(run(0xffffffff81000000), run(0xffffffff81000000))"
    )
    # still user id 0, which can read this tree wherever it lies
    capabilities = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run([*capabilities, sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (0, "unknown_addr:0xffffffff81000000 unknown_addr:0xffffffff81000000\n") == (done.returncode, done.stdout)
    assert 1 == done.stderr.count("CAP_SYSLOG")
