# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from config_support import records

from ebpftrace.errors import BpfError, LoadError, UnsupportedError
from ebpftrace.kernel import btf as btf_module
from ebpftrace.kernel._native import ffi
from ebpftrace.kernel.btf import Btf
from ebpftrace.kernel.object import BpfObject, Program
from ebpftrace.programs import find


@pytest.fixture
def sched():
    """The shipped object `sched`, open but not loaded: that takes no privilege."""
    with BpfObject("sched", find("sched").object_bytes()) as obj:
        yield obj


def field(obj, struct, name):
    """One field of a struct."""
    [found] = [field for field in obj.btf.fields(struct) if field.name == name]
    return found


@pytest.mark.parametrize(
    ("name", "kind", "size", "count"),
    [
        ("span.hdr.ts_ns", "unsigned", 8, 0),
        ("span.trace_id", "bytes", 16, 16),
        ("syscall", "signed", 4, 0),
        ("cause", "unsigned", 1, 0),
        ("waker_comm", "char", 16, 16),
    ],
)
def test_fields(sched, name, kind, size, count):
    """A field has its kind, its size and its number of elements; nested structs are flattened."""
    found = field(sched, "ebt_sched_off_cpu", name)

    assert (kind, size, count) == (found.kind, found.size, found.count)


def test_offsets_ascend(sched):
    """Fields come in their order in memory, and do not overlap."""
    fields = sched.btf.fields("ebt_sched_off_cpu")

    for one, following in itertools.pairwise(fields):
        assert one.offset + one.size <= following.offset


def test_array_of_numbers(sched):
    """An array of numbers has its elements' kind and the size of all."""
    found = field(sched, "ebt_line", "times")

    assert ("unsigned", 72, 9) == (found.kind, found.size, found.count)


def test_unknown_struct(sched):
    """A struct that is not there is a KeyError that names it."""
    with pytest.raises(KeyError, match="ebt_nothing"):
        sched.btf.fields("ebt_nothing")
    with pytest.raises(KeyError, match="ebt_nothing"):
        sched.btf.struct_size("ebt_nothing")


@pytest.fixture
def kinds():
    """An object with records of every kind."""
    with BpfObject("records", records()) as obj:
        yield obj


@pytest.mark.parametrize(
    ("struct", "name", "kind", "names"),
    [
        ("all_kinds", "color", "unsigned", {1: "RED", 2: "GREEN"}),
        ("all_kinds", "offset", "signed", {-1: "BEFORE", 1: "AFTER"}),
        ("wide_enums", "wide", "unsigned", {1: "NARROW", 1 << 40: "WIDE"}),
        ("wide_enums", "wide_signed", "signed", {-(1 << 40): "LOWEST", 1 << 40: "HIGHEST"}),
        ("all_kinds", "u8", "unsigned", None),
    ],
)
def test_enums(kinds, struct, name, kind, names):
    """An enum's field has the names of its values, and its sign."""
    found = field(kinds, struct, name)

    assert (kind, names) == (found.kind, found.names)


def test_bit_fields(kinds):
    """A bit field has its width and the byte that it begins in."""
    low, high = field(kinds, "bits", "low"), field(kinds, "bits", "high")

    assert ((8, 4), (8, 28)) == ((low.offset, low.bits), (high.offset, high.bits))
    assert 0 == field(kinds, "bits", "whole").bits


def test_groups(kinds):
    """Structs and unions within a struct are known with their types; members of nameless ones are the struct's own."""
    groups = {group.name: (group.type, group.offset, group.size) for group in kinds.btf.groups("all_kinds")}

    assert ("ebt_span", 0, 56) == groups["span"]
    assert ("point", 76, 4) == groups["at"]
    assert ("", 152, 8) == groups["value"]
    assert field(kinds, "all_kinds", "v4").offset == field(kinds, "all_kinds", "v6").offset == 136


def test_structs(kinds):
    """All structs can be listed."""
    assert {"all_kinds", "bits", "disk", "ebt_span"} <= set(kinds.btf.structs())


def test_no_btf():
    """An object's BTF may not be there at all: then it is false and has nothing."""
    none = Btf(ffi.NULL)

    assert not none
    assert ([], {}, 0) == (none.structs(), none.variables(".rodata"), none.tracepoint_arguments("sched_switch"))
    with pytest.raises(KeyError, match="anything"):
        none.fields("anything")


def test_rodata(kinds):
    """The read-only data of an object can be read before it is loaded."""
    level = kinds.btf.variables(".rodata")["level"]

    assert -3 == int.from_bytes(kinds.rodata()[level.offset : level.offset + 4], "little", signed=True)


def test_variables(sched):
    """The knobs of an object are known with their types; a section that is not there has none."""
    knobs = sched.btf.variables(".rodata")

    assert ("unsigned", 8) == (knobs["min_off_cpu_ns"].kind, knobs["min_off_cpu_ns"].size)
    assert "bool" == knobs["has_prev_state"].kind
    assert {} == sched.btf.variables(".nothing")


def test_set_rodata(sched):
    """A knob that does not exist, or a value that does not fit, is an error."""
    sched.set_rodata("min_off_cpu_ns", (1 << 64) - 1)
    with pytest.raises(KeyError, match="no knob 'speed'"):
        sched.set_rodata("speed", 1)
    with pytest.raises(OverflowError):
        sched.set_rodata("min_off_cpu_ns", 1 << 64)


def test_programs(sched):
    """An object lists its functions with their hooks."""
    assert Program("sched_switch", "tp_btf/sched_switch") in sched.programs()


def test_unknown_names(sched):
    """Maps and programs that an object does not have are KeyErrors that say so."""
    with pytest.raises(KeyError, match="no map 'nothing'"):
        sched.map("nothing")
    with pytest.raises(KeyError, match="no program 'nothing'"):
        sched.set_autoload("nothing", autoload=False)


@pytest.mark.parametrize("data", [b"", b"no ELF", b"\x7fELF" + bytes(200)])
def test_broken_object(data):
    """What is no BPF object is a LoadError that names it, with what libbpf said as a note."""
    with pytest.raises(LoadError, match="open the BPF object 'broken'") as caught:
        BpfObject("broken", data)
    assert isinstance(caught.value, BpfError)


def test_close_twice():
    """close() may be called again."""
    obj = BpfObject("sched", find("sched").object_bytes())
    obj.close()
    obj.close()


@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="this kernel has no BTF")
def test_kernel():
    """The kernel's own BTF tells how many arguments a tracepoint passes."""
    kernel = Btf.kernel()

    assert kernel.tracepoint_arguments("sched_switch") in (3, 4)
    assert 0 == kernel.tracepoint_arguments("no_such_tracepoint")
    assert 0 < kernel.struct_size("task_struct")


def test_kernel_without_btf(monkeypatch, tmp_path):
    """Without the kernel's BTF the error says what is wrong with it and how to get it."""

    class NoBtf:
        btf__load_vmlinux_btf = staticmethod(lambda: ffi.NULL)

    monkeypatch.setattr(btf_module, "lib", NoBtf)
    monkeypatch.setattr(btf_module, "_VMLINUX", tmp_path / "vmlinux")
    with pytest.raises(UnsupportedError, match=r"cannot be read: No such file.*CONFIG_DEBUG_INFO_BTF=y"):
        Btf.kernel()
