# SPDX-License-Identifier: Apache-2.0
"""A program that BCC loaded: what the agent sees of it; a module that behaves as BCC does stands in for it."""

from __future__ import annotations

import ctypes
import os
import sys
import types
from pathlib import Path

import bcc_support
import pytest

import ebpftrace.bcc
from ebpftrace.bcc.program import BccProgram, BccSource, describe_program, hook_of, macros
from ebpftrace.bcc.structs import SpanHead
from ebpftrace.config.load import load_document
from ebpftrace.config.model import ProgramConfig
from ebpftrace.errors import ConfigError, UnsupportedError

YAML = """
tracing:
  spans:
    - {ringbuf: opens, struct: open_t, labels: [{name: flags}]}
"""


class Open(ctypes.Structure):
    """`struct open_t`, which begins with our head."""

    _fields_ = (("span", SpanHead), ("flags", ctypes.c_uint32))


class Bpf(bcc_support.Bpf):
    """What BCC makes of a source: a ring buffer, and a table by which EBT_RECORD() has it know the struct."""

    functions = (b"tracepoint__syscalls__sys_enter_openat",)
    attached = functions

    def __init__(self, text, cflags):
        kind = "perf" if b"PERF" in text else "ring"
        super().__init__(opens=(kind, None), ebt_record_open_t=("hash", None))
        self.text, self.cflags = text, cflags
        self._fd = os.open("/dev/null", os.O_RDONLY)
        for table in self.tables.values():
            table.map_fd, table.max_entries, table.Key, table.Leaf = self._fd, 65536, ctypes.c_int, ctypes.c_int
        self.tables["ebt_record_open_t"].Leaf = type("open_t", (Open,), {})
        self.funcs = {name: types.SimpleNamespace(fd=self._fd) for name in self.attached}

    def cleanup(self):
        """Close it."""
        if self.module is not None:
            os.close(self._fd)
        super().cleanup()


@pytest.fixture(autouse=True)
def bcc(monkeypatch):
    """The stand-in."""
    monkeypatch.setattr(Bpf, "attached", Bpf.functions)
    lib = types.SimpleNamespace(
        bpf_num_functions=lambda _: len(Bpf.functions), bpf_function_name=lambda _, index: Bpf.functions[index]
    )
    monkeypatch.setitem(sys.modules, "bcc", types.SimpleNamespace(BPF=Bpf))
    monkeypatch.setitem(sys.modules, "bcc.libbcc", types.SimpleNamespace(lib=lib))


def load(text="int x;", **knobs):
    """A program."""
    return BccProgram(BccSource(Path("/some/where/opens-trace.bcc.c"), text, ProgramConfig(), knobs))


def layouts(program, text=YAML):
    """What its records are."""
    return describe_program(program, load_document(text, source="opens-trace.yaml"), "opens")


def descriptors():
    """Those of this process."""
    return set(Path("/proc/self/fd").iterdir())


def test_life():
    """A program has descriptors of its own, which outlive what BCC closes, and none after its end."""
    before = descriptors()
    program = load()
    program.map("opens")
    assert {"tracepoint__syscalls__sys_enter_openat": "tracepoint/syscalls/sys_enter_openat"} == program.hooks()
    assert 65536 == program.max_entries("opens")
    program.detach()
    assert program.bpf.module is None
    assert Path(f"/proc/self/fd/{program.map('opens').fd}").readlink() == Path("/dev/null")
    assert (0, 0) == program.run_stats("tracepoint__syscalls__sys_enter_openat")
    program.close()
    program.close()

    assert before == descriptors()


def test_layouts():
    """A struct that a table of the program holds is known by its name, the head of ours included."""
    program = load()
    [layout] = layouts(program)
    program.close()

    assert {"start": 0, "duration": 48, "flags": 56} == {
        each.name: each.offset for each in layout.columns if each.name in ("start", "duration", "flags")
    }
    assert ("opens", "opens") == (layout.program, layout.ringbuf)


@pytest.mark.parametrize(
    ("wrong", "other", "said"),
    [
        ("ringbuf: opens", "ringbuf: opnes", "has no buffer 'opnes': did you mean 'opens'"),
        ("struct: open_t", "struct: opne_t", r"'opne_t' is known: keep it by EBT_RECORD\(\)"),
        ("name: flags", "name: flogs", "struct open_t has no field 'flogs'"),
        ("name: flags", "name: flags, size: 8", "is 8, but the size of 'flags' is 4"),
    ],
)
def test_does_not_fit(wrong, other, said):
    """What the file names and the program has not, or has otherwise, is an error that says what."""
    program = load()
    with pytest.raises(ConfigError, match=said):
        layouts(program, YAML.replace(wrong, other))
    program.close()


def test_perf_buffer():
    """The agent reads no perf buffers, and says who does."""
    program = load("PERF")
    with pytest.raises(ConfigError, match=r"'opens' is a perf buffer.*ebpftrace\.bcc\.load\(\)"):
        layouts(program)
    program.close()


def test_knobs():
    """Numbers become macros; one that the source does not use is an error."""
    assert "-DKNOB_least=5" in load("KNOB_least", least=5).bpf.cflags
    assert ["-DKNOB_on=1", "-DKNOB_far=8589934592ULL"] == macros(
        BccSource(Path("x.bcc.c"), "KNOB_on KNOB_far", ProgramConfig(), {"on": True, "far": 1 << 33, "names": ["a"]})
    )
    with pytest.raises(ConfigError, match=r"opens-trace\.bcc\.c: does not use KNOB_laest"):
        load("KNOB_least", laest=5)


def test_list_without_table():
    """A list that has no table to go into is an error, and nothing of the program stays."""
    before = descriptors()
    with pytest.raises(ConfigError, match="no map 'names' to put a list into"):
        load(names=["cat"])

    assert before == descriptors()


def test_nothing_attached(monkeypatch):
    """A program of which BCC attaches nothing does not run; how functions are to be called is said."""
    before = descriptors()
    monkeypatch.setattr(Bpf, "attached", ())
    with pytest.raises(UnsupportedError, match="none of tracepoint__syscalls__sys_enter_openat has a name"):
        load()

    assert before == descriptors()


def test_not_all_attached(monkeypatch, caplog):
    """A function that BCC leaves alone, for its name says no hook, is told."""
    monkeypatch.setattr(Bpf, "functions", (*Bpf.functions, b"on_open"))
    load().close()

    assert "not attached, for their names do not say where to: on_open" in caplog.text


@pytest.mark.parametrize(
    ("function", "hook"),
    [
        ("tracepoint__sched__sched_switch", "tracepoint/sched/sched_switch"),
        ("raw_tracepoint__sched_switch", "raw_tracepoint/sched_switch"),
        ("kprobe____x64_sys_open", "kprobe/__x64_sys_open"),
        ("on_open", "on_open"),
    ],
)
def test_hook(function, hook):
    """Hooks are told as libbpf's sections are."""
    assert hook == hook_of(function)


def test_missing_source(tmp_path):
    """From Python, a program without such a source is an error that names the file."""
    (tmp_path / "x.yaml").write_text(YAML)
    (tmp_path / "x.bpf.o").write_text("")

    with pytest.raises(ConfigError, match=r"x\.bcc\.c: is missing"):
        ebpftrace.bcc.load(tmp_path / "x.yaml")
