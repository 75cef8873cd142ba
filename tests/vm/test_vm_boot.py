# SPDX-License-Identifier: Apache-2.0
"""Real boots of a real kernel: only where `make test-vm` has fetched one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from vmtest import cli, image, vm
from vmtest.errors import VmError


def fetched():
    """A kernel that is there already, or why there is none."""
    try:
        vm.require_tools()
    except VmError as error:
        return str(error)
    for vmlinux in sorted((cli.BUILD / "kernels").glob("*/vmlinux")):
        initramfs = vmlinux.parent.with_name(f"{vmlinux.parent.name}.initramfs")
        if initramfs.exists():
            return image.Image("newest", vmlinux.parent.name, vmlinux.parent, initramfs)
    return "`make test-vm` has fetched no kernel yet"


@pytest.fixture
def boot(tmp_path):
    """Returns a function that runs a command in a guest; afterwards nothing of it is left."""
    kernel = fetched()
    if isinstance(kernel, str):
        pytest.skip(kernel)
    mounts, scratch = Path("/proc/self/mounts").read_text(), set(Path("/tmp").glob("vm.*"))
    told = []

    def run(command, timeout_s=60.0):
        return vm.run(kernel, command, tmp_path, timeout_s=timeout_s, tell=told.append)

    run.told, run.release = told, kernel.release
    yield run

    assert mounts == Path("/proc/self/mounts").read_text()
    assert scratch >= set(Path("/tmp").glob("vm.*"))
    assert not [each for each in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in each.read_text()]


def test_command(boot, tmp_path):
    """A command runs as root on that kernel; its code comes back, and what it writes to the shared directory only."""
    mark = Path("/var/tmp/ebpftrace-vm-mark")
    code = boot(f"uname -r; id -u; touch {mark} && touch {tmp_path}/seen; exit 7")

    assert 7 == code
    assert [boot.release, "0"] == boot.told[-2:]
    assert (tmp_path / "seen").exists()
    assert not mark.exists()


def test_panic(boot):
    """A kernel that panics is told with the console's last lines, long before any time is over."""
    started = time.monotonic()
    with pytest.raises(VmError, match="the guest ended before its command did") as caught:
        boot("echo 7 >/proc/sysrq-trigger; echo c >/proc/sysrq-trigger; sleep 60", timeout_s=120.0)

    assert "Kernel panic - not syncing: sysrq triggered crash" in str(caught.value)
    assert time.monotonic() - started < 60


def test_hang(boot):
    """A guest in which nothing goes on any more is killed when the time is over."""
    with pytest.raises(VmError, match="its command did not end within 20 s"):
        boot("sleep 1000", timeout_s=20.0)


def test_init_that_fails(boot, tmp_path, monkeypatch):
    """A guest that finds no shared directory says so."""
    arguments = vm._arguments
    monkeypatch.setattr(
        vm, "_arguments", lambda *args: [word.replace("tag=share", "tag=other") for word in arguments(*args)]
    )
    with pytest.raises(VmError, match="the shared directory cannot be mounted"):
        boot("true")
