# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace build`."""

from __future__ import annotations

import os
import stat

import pytest
from config_support import run

from ebpftrace.cli import build as build_module
from ebpftrace.cli.build import BuildCommand
from ebpftrace.errors import CommandError
from ebpftrace.kernel.object import BpfObject

PROGRAM = """
#include "ebpftrace.bpf.h"
SEC("raw_tp/sys_enter")
int on_enter(void *ctx)
{
	return VALUE;
}
char LICENSE[] SEC("license") = "GPL";
"""
VMLINUX = """
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
SEC("raw_tp/sys_enter")
int on_enter(struct bpf_raw_tracepoint_args *ctx)
{
	struct from_vmlinux *it = (void *)ctx;
	return it->x;
}
char LICENSE[] SEC("license") = "GPL";
"""


def build(*arguments):
    """Run the command."""
    return run(BuildCommand(), *arguments)


@pytest.fixture
def source(tmp_path):
    """A program that compiles with -DVALUE=0."""
    path = tmp_path / "mine.bpf.c"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Makes a program that is found first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


def failure(*arguments):
    """What is said when it fails."""
    with pytest.raises(CommandError) as caught:
        build(*arguments)
    return str(caught.value)


def test_object(source, capsys):
    """A program that includes our header becomes an object beside it, with BTF and without DWARF."""
    assert 0 == build(source, "-D", "VALUE=0")
    output = source.with_name("mine.bpf.o")

    assert f"{output}\n" == capsys.readouterr().out
    data = output.read_bytes()
    assert b".BTF\0" in data
    assert b".debug_info" not in data
    with BpfObject("mine", data) as obj:
        assert ["on_enter"] == [function.name for function in obj.programs()]
        assert obj.btf


def test_output_and_check(source, tmp_path, capsys):
    """-o puts the object elsewhere; with a YAML file beside it, the next step is told."""
    (tmp_path / "other.yaml").write_text("")
    build(source, "-DVALUE=0", "-o", tmp_path / "other.bpf.o")

    assert f"ebpftrace check {tmp_path}/other.yaml" in capsys.readouterr().err
    assert (tmp_path / "other.bpf.o").exists()


def test_include(source, tmp_path):
    """-I is looked into first."""
    (tmp_path / "headers").mkdir()
    (tmp_path / "headers" / "value.h").write_text("#define VALUE 0\n")
    source.write_text('#include "value.h"\n' + PROGRAM)

    assert 0 == build(source, "-I", tmp_path / "headers")


def test_compile_error(source, capsys):
    """The compiler's own words pass through, and an older object is left as it was."""
    source.with_name("mine.bpf.o").write_text("old")

    assert f"{source}: clang" in failure(source)
    assert "VALUE" in capsys.readouterr().err
    assert "old" == source.with_name("mine.bpf.o").read_text()


def test_werror(source):
    """A warning stops nothing, unless --werror is given."""
    source.write_text(PROGRAM + "static int unused(void) { return 1; }\n")

    assert 0 == build(source, "-DVALUE=0")
    assert "cannot compile it" in failure(source, "-DVALUE=0", "--werror")


def test_missing_header(source):
    """A header of libbpf that is missing brings the package that has it."""
    source.write_text("#include <bpf/bpf_nothing.h>\n")

    assert "libbpf's headers are missing: apt-get install libbpf-dev" in failure(source)


@pytest.mark.parametrize(
    ("name", "told"), [("nothing.bpf.c", "is no file"), ("mine.c", "is not called NAME.bpf.c: rename it")]
)
def test_source(tmp_path, name, told):
    """What is no source, or has no name to make an object's of, is told."""
    (tmp_path / "mine.c").write_text("")

    assert told in failure(tmp_path / name)


def test_no_clang(source):
    """A compiler that is not there is an error that says how to get one."""
    assert "no-such-clang: there is no such program: install clang 15" in failure(source, "--clang", "no-such-clang")


def test_old_clang(source, tool):
    """A compiler that is too old is told with its version."""
    old = tool("old-clang", "echo 14.0.6")

    assert f"{old}: is version 14.0.6" in failure(source, "--clang", old)


def test_clang_variable(source, tool, monkeypatch):
    """$CLANG names the compiler."""
    monkeypatch.setenv("CLANG", str(tool("strange", "echo nonsense")))

    assert "strange: is version nonsense" in failure(source)


def test_vmlinux(source, tool):
    """A vmlinux.h that is nowhere is made by bpftool, and nothing of it stays."""
    types = source.with_name("types.h")
    types.write_text("""
        typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned __u32; typedef __u32 u32;
        typedef unsigned long long __u64; typedef int __s32; typedef long long __s64; typedef __u32 __wsum;
        typedef __u16 __be16; typedef __u32 __be32; typedef __u64 __be64; enum bpf_map_type { X };
        struct from_vmlinux { int x; }; struct bpf_raw_tracepoint_args;
    """)
    tool("bpftool", f"cat {types}")
    source.write_text(VMLINUX)

    assert 0 == build(source)
    assert not list(source.parent.glob("**/vmlinux.h"))


def test_own_vmlinux(source, tool, tmp_path):
    """A vmlinux.h that is there is taken."""
    tool("bpftool", "exit 1")
    (tmp_path / "vmlinux.h").write_text(
        "struct from_vmlinux { int x; }; struct bpf_raw_tracepoint_args;\n#include <linux/types.h>\n"
    )
    source.write_text(VMLINUX)

    assert 0 == build(source, "-I", tmp_path)


def test_vmlinux_cannot_be_made(source, tool, monkeypatch):
    """Without bpftool, or when it fails, the error says what to do."""
    tool("bpftool", "echo 'no BTF here' >&2; exit 1")
    source.write_text(VMLINUX)

    assert "bpftool cannot make it from /sys/kernel/btf/vmlinux: no BTF here; or put a vmlinux.h" in failure(source)
    monkeypatch.setattr(build_module.shutil, "which", lambda name, path=None: None if name == "bpftool" else name)
    with pytest.raises(CommandError, match="no bpftool to make it: apt-get install bpftool"):
        build_module._write_vmlinux(source.with_name("vmlinux.h"))


def test_two_sets_of_kernel_types(tmp_path, capfd):
    """vmlinux.h and our header in one program: the message says that they do not go together."""
    (tmp_path / "vmlinux.h").write_text("struct task_struct { int pid; };\n")
    (tmp_path / "both.bpf.c").write_text('#include "vmlinux.h"\n#include "ebpftrace.bpf.h"\n')

    with pytest.raises(CommandError, match=r"vmlinux\.h and ebpftrace\.bpf\.h declare the same types: include one"):
        build(tmp_path / "both.bpf.c", "-I", tmp_path)

    assert "redefinition" in capfd.readouterr().err
