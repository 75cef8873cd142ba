# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.bcc import SpanHead
from ebpftrace.bcc.structs import CtypesTypes, is_record
from ebpftrace.config.structs import RecordStruct
from ebpftrace.errors import ConfigError
from ebpftrace.kernel.btf import Field, Group


class Inner(ctypes.Structure):
    _fields_ = (("a", ctypes.c_uint16), ("b", ctypes.c_int64))


class Either(ctypes.Union):
    _fields_ = (("number", ctypes.c_uint32), ("bytes", ctypes.c_ubyte * 4))


class Every(ctypes.Structure):
    _anonymous_ = ("either",)
    _fields_ = (
        ("flag", ctypes.c_bool),
        ("letter", ctypes.c_char),
        ("small", ctypes.c_int8),
        ("comm", ctypes.c_char * 16),
        ("address", ctypes.c_ubyte * 6),
        ("ratio", ctypes.c_double),
        ("pointer", ctypes.c_void_p),
        ("to", ctypes.POINTER(ctypes.c_int)),
        ("numbers", ctypes.c_uint64 * 3),
        ("grid", (ctypes.c_char * 4) * 2),
        ("inner", Inner),
        ("either", Either),
        ("inners", Inner * 2),
        ("wide", ctypes.c_wchar),
    )


def fields(struct):
    """Name → (offset, size, kind, count)."""
    types = CtypesTypes({"it": struct})
    return {field.name: (field.offset, field.size, field.kind, field.count) for field in types.fields("it")}


def test_kinds():
    """Every kind of field is where ctypes puts it, and of the kind that its bytes have."""
    assert {
        "flag": (0, 1, "bool", 0),
        "letter": (1, 1, "char", 0),
        "small": (2, 1, "signed", 0),
        "comm": (3, 16, "char", 16),
        "address": (19, 6, "bytes", 6),
        "ratio": (32, 8, "float", 0),
        "pointer": (40, 8, "unsigned", 0),
        "to": (48, 8, "unsigned", 0),
        "numbers": (56, 24, "unsigned", 3),
        "grid": (80, 8, "char", 8),
        "inner.a": (88, 2, "unsigned", 0),
        "inner.b": (96, 8, "signed", 0),
        "number": (104, 4, "unsigned", 0),
        "bytes": (104, 4, "bytes", 4),
        "inners": (112, 32, "struct", 2),
        "wide": (144, 4, "other", 0),
    } == fields(Every)


def test_groups():
    """Structures within one are known by name and type; anonymous ones are not there."""
    assert [Group("inner", "Inner", 88, 16)] == CtypesTypes({"it": Every}).groups("it")


def test_inherited_and_packed():
    """Fields of a base come first, and packing counts."""

    class Packed(Inner):
        _pack_ = 1
        _fields_ = (("c", ctypes.c_uint8), ("d", ctypes.c_uint32))

    assert [("a", 0), ("b", 8), ("c", Packed.c.offset), ("d", Packed.d.offset)] == [
        (name, place[0]) for name, place in fields(Packed).items()
    ]


def test_bit_fields():
    """A bit field says how many bits it has, so that using it can be refused."""

    class Bits(ctypes.Structure):
        _fields_ = (("low", ctypes.c_uint32, 3), ("high", ctypes.c_uint32, 29))

    found = CtypesTypes({"it": Bits}).fields("it")

    assert [Field("low", 0, 4, "unsigned", 0, 3), Field("high", 0, 4, "unsigned", 0, 29)] == found


def test_other_byte_order():
    """A number that would be read wrong is refused, with what to declare in its place."""

    class Packet(ctypes.BigEndianStructure):
        _fields_ = (("port", ctypes.c_uint16),)

    with pytest.raises(ConfigError, match=r"struct Packet: 'port' is .* other byte order: declare it as c_ubyte \* 2"):
        CtypesTypes({"Packet": Packet})


def test_head():
    """A record that begins with our head is known as one: its ids and times make the span."""

    class Open(ctypes.Structure):
        _fields_ = (("span", SpanHead), ("flags", ctypes.c_uint32))

    record = RecordStruct(CtypesTypes({"Open": Open}), "Open")

    assert 56 == ctypes.sizeof(SpanHead)
    assert ["flags"] == record.names()
    assert record.head is not None
    assert (56, True) == (record.head.size, record.head.has_type)
    assert [("start", 0), ("trace_id", 16), ("parent_span_id", 32), ("span_id", 40), ("duration", 48)] == [
        (field.role, field.offset) for field in record.head.fields
    ]


def test_unknown_name():
    """A structure that was not given is not there."""
    types = CtypesTypes({})

    assert not types
    for ask in (types.struct_size, types.fields, types.groups):
        with pytest.raises(KeyError):
            ask("it")


@pytest.mark.parametrize("value", [Inner(), Either, int, None, "Inner"])
def test_no_record(value):
    """Only a class of structures describes a record."""
    assert not is_record(value)
    assert is_record(Inner)


_SIMPLE = st.sampled_from(
    [ctypes.c_uint8, ctypes.c_int16, ctypes.c_uint32, ctypes.c_int64, ctypes.c_bool, ctypes.c_float, ctypes.c_char]
)


@given(st.lists(_SIMPLE | st.tuples(_SIMPLE, st.integers(1, 40)).map(lambda pair: pair[0] * pair[1]), max_size=12))
def test_any_structure(kinds):
    """Fields lie where ctypes has them, in their order, within the structure."""
    struct = type("Any", (ctypes.Structure,), {"_fields_": [(f"f{i}", kind) for i, kind in enumerate(kinds)]})
    types = CtypesTypes({"it": struct})

    assert [(getattr(struct, f"f{i}").offset, ctypes.sizeof(kind)) for i, kind in enumerate(kinds)] == [
        (field.offset, field.size) for field in types.fields("it")
    ]
    assert ctypes.sizeof(struct) == types.struct_size("it")
