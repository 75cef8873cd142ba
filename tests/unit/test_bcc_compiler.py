# SPDX-License-Identifier: Apache-2.0
"""What is said when BCC cannot compile or load a program; a module that behaves as BCC does stands in for it."""

from __future__ import annotations

import errno
import os
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest

from ebpftrace.bcc import compiler
from ebpftrace.errors import ConfigError, LoadError, UnsupportedError

SOURCE = Path("/some/where/opens-trace.bcc.c")


class Bpf:
    """Compiles what says "compile", loads what says "load"; tells the rest by its standard error, as C does."""

    made: ClassVar = []

    def __init__(self, text, cflags):
        Bpf.made.append(self)
        self.cleaned, self.module = False, None
        os.write(2, b"/virtual/main.c:3:5: a warning\n")
        if b"compile" not in text:
            os.write(2, b"/virtual/main.c:4:1: error: what is this\n")
            raise Exception("Failed to compile BPF module <text>")  # noqa: TRY002  (as BCC)
        self.module = 1
        self.cflags = cflags
        if b"load" not in text:
            os.write(2, b"R1 invalid mem access\n")
            raise Exception("Failed to load BPF program b'x': Permission denied")  # noqa: TRY002

    def cleanup(self):
        """Close it."""
        self.cleaned, self.module = True, None


@pytest.fixture(autouse=True)
def bcc(monkeypatch):
    """The stand-in, on a machine with headers."""
    monkeypatch.setitem(sys.modules, "bcc", types.SimpleNamespace(BPF=Bpf))
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/")
    monkeypatch.setattr(Bpf, "made", [])


def refused(error, text):
    """What is raised."""
    with pytest.raises(error) as caught:
        compiler.compile_and_attach(SOURCE, text, [])
    [made] = Bpf.made
    assert made.cleaned
    return caught.value


def test_warnings_are_passed_on(capfd):
    """What a compiler says of a source that it takes is not lost."""
    bpf = compiler.compile_and_attach(SOURCE, "compile load", ["-Dx=1"])

    assert ["-Dx=1"] == bpf.cflags
    assert not bpf.cleaned
    assert f"{SOURCE}:3:5: a warning\n" == capfd.readouterr().err


def test_does_not_compile(capfd):
    """The compiler's last lines come with the error, under the source's own name, and only there."""
    error = refused(ConfigError, "load")

    assert f"{SOURCE}: does not compile: correct what BCC's compiler says" == str(error)
    assert [f"BCC said:\n{SOURCE}:3:5: a warning\n{SOURCE}:4:1: error: what is this"] == error.__notes__
    assert "" == capfd.readouterr().err


def test_long_list_of_errors(capfd, monkeypatch):
    """Of many lines the last are in the error, and those before it where they were meant for."""
    monkeypatch.setattr(compiler, "_LAST_LINES", 1)
    error = refused(ConfigError, "load")

    assert [f"BCC said:\n{SOURCE}:4:1: error: what is this"] == error.__notes__
    assert f"{SOURCE}:3:5: a warning\n" == capfd.readouterr().err


def test_no_headers(monkeypatch):
    """Without the kernel's headers, that is what is said, and which package has them."""
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/nowhere")
    monkeypatch.setattr(compiler, "_BUILT_IN_HEADERS", Path("/nowhere.tar.xz"))
    error = refused(UnsupportedError, "load")

    assert "there are no headers of this kernel: neither /nowhere nor /nowhere.tar.xz is there" in str(error)
    assert "linux-headers-$(uname -r)" in error.hint


def test_header_folders(tmp_path, monkeypatch):
    """Headers are found where links lead to, with the sources that they refer to."""
    (tmp_path / "usr/build").mkdir(parents=True)
    (tmp_path / "usr/common").mkdir()
    for name, to in (("build", "build"), ("source", "common")):
        (tmp_path / name).symlink_to(tmp_path / "usr" / to)
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path / "build"))

    assert [tmp_path / "usr/build", tmp_path / "usr/common"] == compiler.header_folders()


@pytest.mark.parametrize(("reason", "number"), [("Permission denied", errno.EINVAL), ("super-user", errno.EPERM)])
def test_not_loaded(monkeypatch, reason, number):
    """What the kernel refuses is closed, and the verifier's last words come with the error."""
    monkeypatch.setattr(compiler.ctypes, "get_errno", lambda: 0)
    if reason == "super-user":
        monkeypatch.setattr(Bpf, "__init__", _need_root)
    error = refused(LoadError, "compile")

    assert str(error).startswith("cannot load opens-trace.bcc.c by BCC: ")
    assert number == error.errno
    assert reason in str(error)
    assert "R1 invalid mem access" in "".join(error.__notes__)


def _need_root(self, **_):
    Bpf.made.append(self)
    self.module = 1
    os.write(2, b"R1 invalid mem access\n")
    raise Exception("Need super-user privileges to run")  # noqa: TRY002


def test_closed_standard_error(monkeypatch):
    """A process without standard error can load a program."""

    def refuse(_):
        raise OSError(errno.EBADF, "closed")

    monkeypatch.setattr(compiler.os, "dup", refuse)

    assert not compiler.compile_and_attach(SOURCE, "compile load", []).cleaned
