# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.resources import files

import bcc_support
import pytest

from ebpftrace.bcc import compat
from ebpftrace.bcc.tap import Taps

KERNEL = """\
struct bpf_timer {
\t__u64 __opaque[2];
} __attribute__((aligned(8)));

struct bpf_wq {
\t__u64 __opaque[2];
} __attribute__((aligned(8)));

struct bpf_refcount {
\t__u32 __opaque[1];
} __attribute__((aligned(4)));

struct bpf_list_node {
\t__u64 :64;
\t__u64 :64;
} __attribute__((aligned(8)));

struct bpf_new_info {
\t__u32 type;
\tstruct bpf_wq *queue;
};
"""
LIBRARY = b"\x7fELF\0struct bpf_timer {\n\t__u64 __opaque[2];\n}\0"
MISSING = [
    "struct bpf_wq { unsigned long long __opaque[2]; } __attribute__((aligned(8)));",
    "struct bpf_refcount { unsigned int __opaque[1]; } __attribute__((aligned(4)));",
    "struct bpf_list_node { unsigned long long :64; unsigned long long :64; } __attribute__((aligned(8)));",
]


@pytest.fixture
def machine(tmp_path):
    """BCC's library, and the directory with a kernel's headers."""
    header = tmp_path / "modules/source" / compat._BPF_H
    header.parent.mkdir(parents=True)
    header.write_text(KERNEL)
    (tmp_path / "libbcc.so.0").write_bytes(LIBRARY)
    return tmp_path / "libbcc.so.0", tmp_path / "modules"


def test_missing():
    """Opaque structures that the kernel has and the library has not are given as the kernel defines them."""
    assert MISSING == compat.missing_structs(KERNEL, LIBRARY)


def test_flags(machine):
    """They come through one header."""
    assert ["-include", compat.HEADER, f"-DEBT_BCC_STRUCTS={' '.join(MISSING)}"] == compat.flags(*machine)


def test_nothing_missing(machine, tmp_path):
    """A BCC that has them all, and a kernel without headers, need nothing."""
    library, modules = machine
    assert [] == compat.flags(library, tmp_path)
    library.write_bytes(KERNEL.encode())

    assert [] == compat.flags(library, modules)


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")
def test_compiles(machine, tmp_path):
    """What the header makes of them is complete to a compiler."""
    source = tmp_path / "program.c"
    source.write_text('_Static_assert(sizeof(struct bpf_wq) == 16 && sizeof(struct bpf_refcount) == 4, "");\n')
    include = files("ebpftrace.programs").joinpath("include")
    command = ["cc", "-fsyntax-only", f"-I{include}", *compat.flags(*machine), source]
    done = subprocess.run(command, check=False, capture_output=True, text=True)

    assert ("", 0) == (done.stderr, done.returncode)


def test_tool(monkeypatch, machine):
    """A tool's programs are compiled with them, after the tool's own flags, until the taps are closed."""
    bcc, given = bcc_support.module(), []

    class Tool(bcc.BPF):
        def __init__(self, text=None, debug=0, cflags=()):
            given.append(list(cflags))

    bcc.BPF = Tool
    monkeypatch.setitem(sys.modules, "bcc", bcc)
    flags = compat.flags(*machine)
    monkeypatch.setattr(compat, "flags", lambda: flags)
    taps = Taps(bcc, "tool", None, stamp="start", service_name="", output="/dev/null")
    Tool("int x;", 0, ["-DMINE"])
    Tool(text="int x;")
    taps.close()
    Tool("int x;")

    assert "-DMINE" == given[0][0]
    assert flags == given[0][-3:] == given[1][-3:]
    assert [] == given[2]
