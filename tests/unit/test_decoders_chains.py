# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math
import struct
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebpftrace.config.model import DecoderConfig
from ebpftrace.decoders import SkipRecord, catalogue, chain, make_decoder
from ebpftrace.decoders.values import decimal, number
from ebpftrace.errors import ConfigError

ORDER = sys.byteorder
KEYS = {"static_map": {"static_map": {1: "one", "two": "2"}}, "regexp": {"regexps": ["^a(.*)$", "[0-9]+", "b.c"]}}
TYPES = {"int": int, "float": float, "bool": bool, "text": str, "texts": tuple}
NAMES = {0: "ZERO", 5: "FIVE", -1: "MINUS"}
VALUES = {
    "raw": lambda size: st.binary(min_size=size, max_size=size),
    "char": lambda size: st.binary(min_size=size, max_size=size),
    "unsigned": lambda size: st.integers(0, (1 << 8 * size) - 1),
    "signed": lambda size: st.integers(-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1),
    "bool": lambda _: st.booleans(),
    "float": lambda _: st.floats(),
}
SIZES = {"bool": [1], "float": [4, 8], "unsigned": [1, 2, 4, 8], "signed": [1, 2, 4, 8]}


def configs(*names):
    """Entries of a program's file, with keys where they need them."""
    return [DecoderConfig(name, **KEYS.get(name, {})) for name in names]


def problems(kind, size, *decoders, names=None):
    with pytest.raises(ConfigError) as caught:
        chain(kind, size, [d if isinstance(d, DecoderConfig) else configs(d)[0] for d in decoders], names)
    return str(caught.value).splitlines()


@st.composite
def chains(draw):
    """Any field and any decoders that fit it and each other."""
    kind = draw(st.sampled_from(sorted(VALUES)))
    size = draw(st.sampled_from(SIZES.get(kind, [1, 2, 3, 4, 8, 16, 24, 28, 64, 110])))
    names = draw(st.sampled_from([None, NAMES]))
    wanted = []
    for name in draw(st.lists(st.sampled_from([entry.name for entry in catalogue()]), max_size=3)):
        try:
            chain(kind, size, configs(*wanted, name), names)
        except ConfigError:
            continue
        wanted.append(name)
    return chain(kind, size, configs(*wanted), names), draw(VALUES[kind](size)), size, kind


def in_memory(value, kind, size):
    if isinstance(value, bytes):
        return value
    if kind == "float":
        return struct.pack("=f" if size == 4 else "=d", value)
    return int(value).to_bytes(size, ORDER, signed=kind == "signed")


def as_c_does(native, data):
    """What the native encoder makes of a field."""
    return {
        "uint": lambda: int.from_bytes(data, ORDER),
        "sint": lambda: int.from_bytes(data, ORDER, signed=True),
        "bool": lambda: data != b"\0",
        "float": lambda: struct.unpack("=f" if len(data) == 4 else "=d", data)[0],
        "cstring": lambda: data.partition(b"\0")[0].decode("utf-8", "replace") or None,
        "hex": data.hex,
    }[native]()


# the first look-up of a kernel address reads them all
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chains())
def test_any_record_decodes(case):
    """Whatever bytes a field has, its chain gives an attribute of the promised type, or none, or skips the record."""
    decoders, value, *_ = case
    try:
        result = decoders.run(value)
    except SkipRecord:
        return

    assert result is None or TYPES[decoders.gives] is type(result)
    if decoders.gives == "texts":
        assert all(type(part) is str for part in result or ())


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chains())
def test_native_is_the_same(case):
    """Where a chain says that C may do it, C's result is that of the chain."""
    decoders, value, size, kind = case
    if not decoders.native or (kind == "float" and size == 4):
        return
    expected = as_c_does(decoders.native, in_memory(value, kind, size))
    result = decoders.run(value)

    assert expected == result or (math.isnan(expected) and math.isnan(result))


@settings(deadline=None)
@given(st.sampled_from([entry.name for entry in catalogue()]), st.binary(max_size=200))
def test_no_decoder_fails(name, data):
    """A decoder that takes bytes takes any of a size that passes the check; its answer can be sent."""
    entry = next(entry for entry in catalogue() if entry.name == name)
    try:
        result = chain("raw", len(data), configs(name)).run(data)
    except (ConfigError, SkipRecord):
        return

    assert "bytes" in entry.takes
    if isinstance(result, str):
        assert result.encode()


@settings(deadline=None)
@given(st.sampled_from([entry.name for entry in catalogue() if "text" in entry.takes]), st.text())
def test_any_text(name, text):
    """A decoder that takes text takes any, also where it means a number."""
    try:
        result = make_decoder(configs(name)[0])(text)
    except SkipRecord:
        return

    assert result is None or isinstance(result, str)


@pytest.mark.parametrize(
    ("kind", "value", "native", "gives", "result"),
    [
        ("unsigned", 7, "uint", "int", 7),
        ("signed", -7, "sint", "int", -7),
        ("bool", True, "bool", "bool", True),
        ("float", 0.5, "float", "float", 0.5),
        ("char", b"ab\0c", "cstring", "text", "ab"),
        ("char", b"\0abc", "cstring", "text", None),
        ("raw", b"ab\0\xff", "hex", "text", "616200ff"),
    ],
)
def test_no_decoders(kind, value, native, gives, result):
    """A field without decoders becomes what it is."""
    plain = chain(kind, 4, [])

    assert (native, gives, True, result) == (plain.native, plain.gives, plain.lasting, plain.run(value))


@pytest.mark.parametrize(
    ("kind", "size", "names", "native"),
    [
        ("raw", 4, ["uint"], "uint"),
        ("raw", 4, ["int"], "sint"),
        ("raw", 8, ["float"], "float"),
        ("raw", 1, ["bool"], "bool"),
        ("raw", 2, ["bool"], ""),
        ("raw", 16, ["string"], "cstring"),
        ("raw", 16, ["hex"], "hex"),
        ("char", 16, ["string"], "cstring"),
        ("char", 16, ["hex"], "hex"),
        ("unsigned", 4, ["uint"], "uint"),
        ("unsigned", 4, ["int"], "sint"),
        ("signed", 4, ["uint"], "uint"),
        ("unsigned", 8, ["hex"], "hex"),
        ("unsigned", 1, ["bool"], ""),
        ("bool", 1, ["bool"], "bool"),
        ("bool", 1, ["uint"], ""),
        ("raw", 4, ["uint", "static_map"], ""),
        ("raw", 4, ["uint", "bool"], ""),
        ("raw", 4, ["inet_ip"], ""),
    ],
)
def test_native(kind, size, names, native):
    """C may read what needs no look-up and is one step."""
    assert native == chain(kind, size, configs(*names)).native


@pytest.mark.parametrize(
    ("name", "lasting"), [("uint", True), ("errno", True), ("pid", False), ("cgroup", False), ("ksym", False)]
)
def test_lasting(name, lasting):
    """What is looked up outside of the record may change."""
    names = [name] if name == "uint" else ["uint", name]

    assert lasting == chain("raw", 8, configs(*names)).lasting


def test_in_order():
    """Decoders are applied one after another."""
    decoders = chain("raw", 4, [DecoderConfig("uint"), DecoderConfig("static_map", {1: "read"})])

    assert "read" == decoders.run((1).to_bytes(4, ORDER))


def test_nothing_ends_a_chain():
    """Where a decoder has nothing to say, those that follow are not asked."""
    decoders = chain("signed", 4, [DecoderConfig("errno"), DecoderConfig("static_map", {"EPERM": "no"})])

    assert (None, "no") == (decoders.run(0), decoders.run(1))


def test_a_filter_sees_empty_text():
    """Empty text is no attribute, yet a filter that follows has to see it."""
    decoders = chain("raw", 4, [DecoderConfig("string"), DecoderConfig("regexp", regexps=["^bash$"])])

    with pytest.raises(SkipRecord):
        decoders.run(b"\0\0\0\0")


def test_field_of_text():
    """A field that is text needs no `string`."""
    decoders = chain("char", 8, [DecoderConfig("regexp", regexps=["^k(.*)/$"])])

    assert "worker" == decoders.run(b"kworker/")
    assert "it" == decoders.run(b"kit/\0old")


@pytest.mark.parametrize("kind", ["raw", "unsigned"])
def test_address_in_a_number(kind):
    """A number's bytes are in memory what they are in the label form."""
    decoders = chain(kind, 4, configs("inet_ip"))
    data = b"\x7f\0\0\1"

    assert "127.0.0.1" == decoders.run(data if kind == "raw" else int.from_bytes(data, ORDER))


def test_other_sign():
    """`int` and `uint` read a number again, whatever the C struct says of its sign."""
    assert -1 == chain("unsigned", 4, configs("int")).run(0xFFFFFFFF)
    assert 0xFFFF == chain("signed", 2, configs("uint")).run(-1)


def test_enum():
    """An enum's value is its name, with the decoder or without any."""
    assert "FIVE" == chain("unsigned", 4, [], NAMES).run(5)
    assert "FIVE" == chain("raw", 4, configs("enum"), NAMES).run((5).to_bytes(4, ORDER))
    assert "MINUS" == chain("unsigned", 4, configs("enum"), NAMES).run(0xFFFFFFFF)
    assert "unknown:6" == chain("unsigned", 4, configs("uint", "enum"), NAMES).run(6)
    assert 5 == chain("unsigned", 4, configs("uint"), NAMES).run(5)


SIZE = "correct the label's size"
NEITHER = "takes a number or text, but gets the field's bytes:"


@pytest.mark.parametrize(
    ("kind", "size", "decoders", "problem"),
    [
        ("raw", 3, ["uint"], f"takes a field of 1, 2, 4 or 8 bytes, not of 3: {SIZE}"),
        ("raw", 8, ["inet_ip"], f"takes a field of 4 or 16 bytes, not of 8: {SIZE}"),
        ("unsigned", 8, ["inet_ip"], f"takes a field of 4 or 16 bytes, not of 8: {SIZE}"),
        ("raw", 4, ["ksym"], f"takes a field of 8 bytes, not of 4: {SIZE}"),
        ("raw", 12, ["kstack"], f"takes a field of a multiple of 8 bytes, not of 12: {SIZE}"),
        ("raw", 2, ["sockaddr"], f"takes a field of at least 8 bytes, not of 2: {SIZE}"),
        ("raw", 4, ["errno"], f"{NEITHER} put `uint` before it"),
        ("raw", 16, ["errno"], f"{NEITHER} put `string` before it"),
        ("raw", 8, ["uint", "kstack"], "takes the field's bytes, but gets a number: put it first"),
        ("float", 8, ["kstack"], "takes the field's bytes, but gets a floating-point number: take it out"),
        ("char", 8, ["uid"], "takes the field's bytes or a number, but the field is text: take it out"),
        (
            "raw",
            8,
            ["argv", "string"],
            "takes the field's bytes or text or a number, but gets a list of texts: take it out",
        ),
        ("raw", 4, ["unit"], "there is no such decoder: did you mean 'uint'?"),
        ("raw", 4, ["uint", DecoderConfig("static_map")], "needs 'static_map', which is missing or empty"),
        ("raw", 4, [DecoderConfig("regexp")], "needs 'regexps', which is missing or empty"),
        (
            "raw",
            4,
            [DecoderConfig("hex", regexps=["x"])],
            "does not take 'regexps': take it out, or use the right decoder",
        ),
        (
            "unsigned",
            4,
            ["enum"],
            "the field is no enum in the object's BTF: use `static_map`, or name the record's `struct`",
        ),
        (
            "raw",
            4,
            [DecoderConfig("regexp", regexps=["(", "ok", "[z"])],
            (
                "the regexp '(' cannot be used: missing ), unterminated subpattern; "
                "the regexp '[z' cannot be used: unterminated character set"
            ),
        ),
    ],
)
def test_wrong_chain(kind, size, decoders, problem):
    """A chain that cannot work says what is wrong and how to mend it."""
    last = decoders[-1] if isinstance(decoders[-1], str) else decoders[-1].name

    assert [f"decoder {len(decoders)}, {last!r}: {problem}"] == problems(kind, size, *decoders)


def test_all_that_is_wrong():
    """Everything that is wrong with a chain is said at once; what follows from it is not."""
    lines = problems("raw", 3, "uint", "stringg", "argv", DecoderConfig("static_map"))

    assert ["decoder 1, 'uint'", "decoder 2, 'stringg'", "decoder 4, 'static_map'"] == [
        line.partition(":")[0] for line in lines[:3]
    ]
    assert 4 == len(lines)  # static_map gets a list of texts as well


def test_strange_name():
    """A name that is like none brings up all that there are."""
    (line,) = problems("raw", 4, "xyzzy")

    assert line.startswith("decoder 1, 'xyzzy': there is no such decoder; there are argv, bool, cgroup, ")


def test_catalogue():
    """The catalogue has every decoder of ebpf_exporter, ours, and one line for each."""
    names = [entry.name for entry in catalogue()]
    peers = {"uint", "hex", "string", "ksym", "kstack", "majorminor", "ifname", "inet_ip", "dname", "errno", "syscall"}
    peers |= {"cgroup", "static_map", "regexp", "pci_vendor", "pci_device", "pci_class", "pci_subclass"}
    ours = {
        "int",
        "bool",
        "float",
        "enum",
        "timestamp",
        "duration",
        "micros",
        "sockaddr",
        "uid",
        "gid",
        "pid",
        "kernel_stack",
    }

    assert sorted(names) == names
    assert set() == (peers | ours) - set(names)
    assert all(entry.summary and "\n" not in entry.summary for entry in catalogue())


def test_what_a_chain_needs():
    """A chain knows what it reads and which capabilities it needs, so that the rest can be taken away."""
    decoders = chain("raw", 8, configs("ksym"))

    assert (frozenset({"CAP_SYSLOG"}), ("/proc",)) == (decoders.capabilities, decoders.reads)
    assert (frozenset(), ()) == (chain("raw", 4, configs("uint")).capabilities, chain("raw", 4, configs("uint")).reads)


def test_prepare():
    """What has to be read early is read by `prepare`, once for each kind."""
    calls = []
    decoders = dataclasses.replace(chain("raw", 8, configs("ksym")), preparations=frozenset([lambda: calls.append(1)]))
    decoders.prepare()

    assert [1] == calls


@pytest.mark.parametrize(
    ("value", "result"),
    [("12", 12), ("-12", -12), (12, 12), (True, 1), ("", None), ("-", None), ("1" * 5000, None), ("²", None)],
)
def test_number(value, result):
    """Decimal text of a length that a u64 can have is a number; nothing else is."""
    assert result == number(value)


@given(st.integers(0, (1 << 64) - 1))
def test_number_of_decimal(value):
    """A number survives as text."""
    assert value == number(decimal(value))
