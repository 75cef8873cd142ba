# SPDX-License-Identifier: Apache-2.0
"""A guest that ends as it should, and guests that do not: with a script in QEMU's place."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest
from vmtest import image, shares, vm
from vmtest.errors import VmError

# what the emulator is given, as far as the script needs it
HEAD = """#!/bin/bash
for word; do case $word in file,id=console,path=*) console=${word##*path=} ;; *vm.share=*) line=$word ;; esac; done
share=${line##*vm.share=}; share=${share%% *}
"""


@pytest.fixture
def boot(tmp_path, monkeypatch):
    """Returns a function that boots a guest which a shell script plays; `told` are its lines."""
    directory, told = tmp_path / "bin", []
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setattr(vm, "share", contextlib.contextmanager(lambda place, scratch, tag, **_: iter([scratch / tag])))
    monkeypatch.setattr(vm, "_LOOK_S", 0.05)

    def run(script, timeout_s=10.0, boot_s=10.0):
        emulator = directory / vm.QEMU
        emulator.write_text(HEAD + script)
        emulator.chmod(0o755)
        results = tmp_path / "results"
        results.mkdir(exist_ok=True)
        kernel = image.Image("9.9", "9.9.0-1", tmp_path, tmp_path / "initramfs")
        return vm.run(kernel, "true", results, timeout_s=timeout_s, boot_s=boot_s, tell=told.append)

    run.told = told
    return run


@pytest.fixture(autouse=True)
def nothing_left():
    """No process of ours is left, and no directory in /tmp."""

    def scratch():
        return set(Path("/tmp").glob("vm.*"))

    before = scratch()

    yield

    assert before >= scratch()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("code", [0, 7])
def test_exit_code(boot, code):
    """The command's exit code comes back, and its lines as they are written."""
    assert code == boot(f"echo one; echo two; echo {code} >$share/exit-code")
    assert ["one", "two"] == boot.told


def test_panic(boot):
    """A guest that ends without its command's code is told by kernel, with the console's last lines."""
    with pytest.raises(VmError) as caught:
        boot('echo up; printf "boot\\r\\nKernel panic - not syncing: because\\r\\n" >$console')

    assert "kernel 9.9 (9.9.0-1): the guest ended before its command did" in str(caught.value)
    assert "  | Kernel panic - not syncing: because" in str(caught.value).splitlines()
    assert caught.value.again


def test_panic_with_a_trace(boot):
    """Why the kernel died is there though a long trace follows."""
    with pytest.raises(VmError) as caught:
        boot("echo up; { echo 'Kernel panic - not syncing: because'; seq 100; } >$console")

    assert "  | Kernel panic - not syncing: because" in str(caught.value).splitlines()
    assert "  | 100" == str(caught.value).splitlines()[-1]


def test_last_words(boot):
    """The line that a guest died in comes, too."""
    with pytest.raises(VmError):
        boot("echo one; printf 'tests/x.py::test_y '")

    assert ["one", "tests/x.py::test_y "] == boot.told


def test_hang(boot):
    """A command that does not end is killed when the time is over."""
    started = time.monotonic()
    with pytest.raises(VmError, match=r"kernel 9\.9 .*: its command did not end within 1 s") as caught:
        boot("echo up; exec sleep 60", timeout_s=1.0)

    assert time.monotonic() - started < 5
    assert not caught.value.again


def test_no_boot(boot):
    """A kernel that says nothing is given up long before the time for its tests is over."""
    with pytest.raises(VmError, match="it did not boot within 1 s") as caught:
        boot("echo 'stuck in early boot' >$console; exec sleep 60", timeout_s=60.0, boot_s=1.0)

    assert caught.value.again


def test_emulator_fails(boot):
    """What the emulator itself complains about is shown."""
    with pytest.raises(VmError, match="qemu: unsupported machine"):
        boot("echo 'qemu: unsupported machine' >&2; exit 1")


def test_old_code(boot):
    """An exit code of an earlier run is not taken for this one's."""
    boot("echo up; echo 0 >$share/exit-code")
    with pytest.raises(VmError, match="ended before its command did"):
        boot("echo up")


def test_stopped(boot, monkeypatch):
    """A run that is to end does so at once."""
    stop = threading.Event()
    monkeypatch.setattr(vm, "STOP", stop)
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    with pytest.raises(VmError, match="it was stopped"):
        boot("echo up; exec sleep 60", timeout_s=60.0)
    timer.join()


@pytest.mark.parametrize("kvm", [True, False])
def test_clock(monkeypatch, tmp_path, kvm):
    """An emulated guest has a clock that does not depend on how busy this machine is; a native one has its own."""
    monkeypatch.setattr(vm, "has_kvm", lambda: kvm)
    kernel = image.Image("9.9", "9.9.0-1", tmp_path, tmp_path / "initramfs")
    arguments = vm._arguments(kernel, {}, tmp_path, tmp_path, 512)

    assert kvm == ("-icount" not in arguments)
    assert ("kvm" in arguments) == kvm


@pytest.mark.parametrize("missing", [vm.QEMU, "busybox", "depmod"])
def test_missing_tool(monkeypatch, missing):
    """What is missing is told by its package, and what installs it."""
    found = vm.shutil.which
    monkeypatch.setattr(vm.shutil, "which", lambda name: None if name == missing else found(name) or "/bin/true")
    with pytest.raises(VmError, match=vm.TOOLS[missing]) as caught:
        vm.require_tools()

    assert "scripts/vm.sh" in str(caught.value)


def test_no_root(monkeypatch):
    """Without root it is said that root is needed."""
    monkeypatch.setattr(vm.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(vm.shutil, "which", lambda _: "/bin/true")
    with pytest.raises(VmError, match="needs root"):
        vm.require_tools()


def test_other_machine(monkeypatch):
    """A machine that is no x86-64 is told so."""
    monkeypatch.setattr(vm.os, "uname", lambda: type("uname", (), {"machine": "aarch64"}))
    with pytest.raises(VmError, match="aarch64"):
        vm.require_tools()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.parametrize("program", ["/bin/false", "/no/such/virtiofsd"])
def test_no_share(tmp_path, monkeypatch, program):
    """A directory that cannot be served is an error with the server's words, and leaves no mount."""
    before = Path("/proc/self/mounts").read_text()
    monkeypatch.setattr(shares, "VIRTIOFSD", program)
    with pytest.raises(VmError, match="cannot be shared"), shares.share("/", tmp_path, "host"):
        pass

    assert not (tmp_path / "host.root").exists()
    assert before == Path("/proc/self/mounts").read_text()
