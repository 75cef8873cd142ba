# SPDX-License-Identifier: Apache-2.0
"""A file and an object put together, with an object that has records of every kind."""

from __future__ import annotations

import logging
import subprocess

import pytest
from config_support import check_text, compile_records, records

from ebpftrace.cli.build import _find_clang
from ebpftrace.config import ConfigProblems, load_document
from ebpftrace.config.resolve import resolve
from ebpftrace.kernel.object import BpfObject

ALL = "tracing:\n  spans:\n    - {name: all, ringbuf: events, struct: all_kinds, type: 1, hook: tp_btf/x}\n"
HEAD = {
    "start": (0, 8, "unsigned"),
    "trace_id": (16, 16, "raw"),
    "parent_span_id": (32, 8, "raw"),
    "span_id": (40, 8, "raw"),
    "duration": (48, 8, "unsigned"),
}


def span(*lines):
    """A file with one span of these keys."""
    return "tracing:\n  spans:\n    - ringbuf: events\n" + "".join(f"      {line}\n" for line in lines)


@pytest.fixture
def layout(tmp_path):
    """The layout of the only span of a file; there must be no problem."""

    def one(text):
        report = check_text(tmp_path, text)
        assert [] == list(map(str, report.problems))
        [found] = report.layouts
        return found

    return one


@pytest.fixture
def messages(tmp_path):
    """The problems of a file without where they are, then its warnings likewise."""

    def told(text, data=None):
        report = check_text(tmp_path, text, data)
        return [str(each).split(": ", 1)[1] for each in (*report.problems, *report.warnings)]

    return told


def places(layout):
    """The columns by name, as (offset, size, kind)."""
    return {column.name: (column.offset, column.size, column.kind) for column in layout.columns}


def test_all_fields(layout):
    """Without labels all fields become attributes, but the head, padding and what overlaps."""
    found = layout(ALL)

    assert HEAD | {
        "u8": (56, 1, "unsigned"),
        "s16": (58, 2, "signed"),
        "f32": (60, 4, "float"),
        "flag": (64, 1, "bool"),
        "color": (68, 4, "unsigned"),
        "offset": (72, 4, "signed"),
        "at.x": (76, 2, "unsigned"),
        "at.y": (78, 2, "unsigned"),
        "stack": (80, 32, "raw"),
        "comm": (112, 16, "char"),
        "bytes": (128, 6, "raw"),
        "v4": (136, 4, "unsigned"),
        "value.number": (152, 8, "unsigned"),
    } == places(found)
    assert list(HEAD) == [column.role for column in found.columns if column.role]
    assert "at.x" == next(column.key for column in found.columns if column.name == "at.x")


def test_layout(layout):
    """What is not of a column comes from the file and the object: names, type, size, the span's own attributes."""
    found = layout(ALL)

    assert ("records", "records-trace.yaml: span 'all'", "all", "events") == (
        found.program, found.where, found.name, found.ringbuf,
    )  # fmt: skip
    assert (1, 8, 160) == (found.type, found.type_offset, found.size)
    assert {"ebpftrace.program": "records", "ebpftrace.hook": "tp_btf/x"} == found.attributes


def test_name_of_the_ring(layout):
    """A span without a name is called as its ring buffer, and without a hook has no attribute for one."""
    found = layout(span("struct: all_kinds"))

    assert ("events", {"ebpftrace.program": "records"}) == (found.name, found.attributes)


def test_enums(layout):
    """An enum's values have the names of the C code, negative ones too."""
    names = {column.name: column.names for column in layout(ALL).columns if column.names}

    assert {"color": {1: "RED", 2: "GREEN"}, "offset": {-1: "BEFORE", 1: "AFTER"}} == names


def test_labels_by_name(layout):
    """A label names a field, a struct within, a union or one of its members, and says what becomes of it."""
    found = layout(
        span(
            "struct: all_kinds",
            "labels:",
            "  - {name: at, decoders: [{name: hex}]}",
            "  - {name: v6, attribute: client.address, decoders: [{name: inet_ip}]}",
            "  - {name: value.real}",
            "  - {name: color, role: span_name}",
            "  - {name: value.number, role: event, event: started}",
            "  - {name: value, role: link_trace_id, decoders: [{name: hex}]}",
            "  - {name: value.number, role: link_span_id}",
            "  - {name: flag, omit: false}",
            "  - {name: comm, omit: 0}",
        )
    )

    assert [
        ("at", "", "at", 76, 4, "raw", None),
        ("v6", "", "client.address", 136, 16, "raw", None),
        ("value.real", "", "value.real", 152, 8, "float", None),
        ("color", "span_name", "", 68, 4, "unsigned", None),
        ("value.number", "event", "started", 152, 8, "unsigned", None),
        ("value", "link_trace_id", "", 152, 8, "raw", None),
        ("value.number", "link_span_id", "", 152, 8, "raw", None),
        ("flag", "", "flag", 64, 1, "bool", 0),
        ("comm", "", "comm", 112, 16, "char", "0"),
    ] == [
        (column.name, column.role, column.key, column.offset, column.size, column.kind, column.omit)
        for column in found.columns[len(HEAD) :]
    ]


def test_own_roles(layout):
    """A struct without a known head may have fields of the reserved names, which then have their roles."""
    found = layout(span("struct: own_roles"))

    assert [
        ("trace_id", 0, 16, "raw"),
        ("span_id", 16, 8, "raw"),
        ("start", 24, 8, "unsigned"),
        ("", 32, 4, "unsigned"),
    ] == [(column.role, column.offset, column.size, column.kind) for column in found.columns]


def test_attribute_of_a_reserved_name(layout):
    """A label with an attribute is one, whatever it is called."""
    found = layout(
        span("struct: own_roles", "labels: [{name: span_id, attribute: other.span, decoders: [{name: hex}]}]")
    )

    assert [("", "other.span")] == [(column.role, column.key) for column in found.columns]


def test_exporter_head(layout):
    """The head of ebpf_exporter's programs is found by its names; what it has besides is an attribute."""
    found = layout(span("struct: disk"))

    assert [
        ("trace_id", 0, 16, "raw"),
        ("parent_span_id", 16, 8, "raw"),
        ("span_id", 32, 8, "raw"),
        ("start", 40, 8, "unsigned"),
        ("duration", 48, 8, "unsigned"),
        ("base.parent.tag", 24, 8, "unsigned"),
        ("device", 56, 4, "unsigned"),
        ("operation", 60, 1, "unsigned"),
    ] == [(column.role or column.key, column.offset, column.size, column.kind) for column in found.columns]


@pytest.mark.parametrize(
    ("base", "head"),
    [
        ("", {}),
        ("ebpftrace", HEAD),
        (
            "ebpf_exporter",
            {
                "trace_id": (0, 16, "raw"),
                "parent_span_id": (16, 8, "raw"),
                "span_id": (24, 8, "raw"),
                "start": (32, 8, "unsigned"),
                "duration": (40, 8, "unsigned"),
            },
        ),
    ],
)
def test_label_form(layout, base, head):
    """Labels with sizes lie one after the other, with their paddings between, after the head that `base` names."""
    begin = {"": 0, "ebpftrace": 56, "ebpf_exporter": 48}[base]
    found = layout(
        span(
            f"base: '{base}'",
            "labels:",
            "  - {name: first, size: 3, padding: 5, decoders: [{name: hex}]}",
            "  - {name: second, size: 4, padding: 4, decoders: [{name: uint}]}",
        )
    )

    assert head | {"first": (begin, 3, "raw"), "second": (begin + 8, 4, "raw")} == places(found)
    assert begin + 12 == found.size


SIZED = (
    "struct: disk",
    "labels:",
    "  - {name: trace_id, size: 16, decoders: [{name: hex}]}",
    "  - {name: parent_span_id, size: 8, padding: 8, decoders: [{name: hex}]}",
    "  - {name: span_id, size: 8, decoders: [{name: hex}]}",
    "  - {name: span_monotonic_timestamp_ns, size: 8, decoders: [{name: uint}]}",
    "  - {name: span_duration_ns, size: 8, decoders: [{name: uint}]}",
    "  - {name: device, size: 4, decoders: [{name: majorminor}]}",
    "  - {name: op, size: 4, decoders: [{name: uint}]}",
)


def test_sizes_and_struct(layout):
    """Labels with sizes may name their struct too; a number is then read without the padding its size covers."""
    found = layout(span(*SIZED))

    assert {"trace_id": (0, 16, "raw"), "device": (56, 4, "raw"), "op": (60, 1, "raw")}.items() <= places(found).items()


def test_sizes_after_the_head(layout):
    """Sized labels without ids come after the head of the struct they name, which is found by itself."""
    found = layout(
        span("struct: all_kinds", "labels:", "  - {name: small, size: 2, decoders: [{name: uint}]}",
             "  - {name: more, size: 2, decoders: [{name: int}]}")
    )  # fmt: skip

    assert HEAD | {"small": (56, 1, "raw"), "more": (58, 2, "raw")} == places(found)


@pytest.mark.parametrize(
    ("old", "new", "label", "why"),
    [
        (
            "device, size: 4",
            "device, size: 2",
            "[5].size: 'device'",
            "it ends at byte 58, where 'device' is, 4 bytes from",
        ),
        ("padding: 8, ", "", "[5].size: 'device'", "it ends at byte 52, where"),
        ("_id, size: 8, padding: 8", "_id, size: 4", "[1].size: 'parent_span_id'", "it ends at byte 20, where"),
        ("op, size: 4", "op, size: 5", "[6].size: 'op'", "it ends at byte 65, after the struct's end at byte 64"),
    ],
)
def test_sizes_against_struct(messages, old, new, label, why):
    """A label that does not begin and end where fields do is a problem, the first one only."""
    [found] = [each for each in messages(span(*(line.replace(old, new) for line in SIZED))) if "disagrees" in each]

    assert found.startswith(f"tracing.spans[0].labels{label} disagrees with struct disk: {why}")


def test_near_miss_is_a_warning(messages):
    """Without a struct named, a struct of the object that nearly fits gives a warning; one that fits gives none."""
    lines = [line for line in SIZED if not line.startswith("struct")]

    assert [] == messages(span(*lines))
    [warning] = messages(
        span(*(line.replace("device, size: 4", "device, size: 3") for line in lines)).replace("majorminor", "hex")
    )
    assert "labels[5].size: 'device' disagrees with struct disk, which is most like the labels" in warning


def test_grown_head_is_a_warning(messages):
    """A member more in the head shifts what is after it: the first label that is no longer at its field is named."""
    labels = [line for line in SIZED if not line.startswith("struct")]
    without = [line.replace("padding: 8, ", "") for line in labels]

    assert without != labels
    [warning] = messages(span(*without))
    assert "'span_id' disagrees with struct disk, which is most like the labels: it is at byte 24" in warning


def test_one_name_elsewhere(messages):
    """One label that has another field's name may be meant so."""
    labels = [line.replace("device", "number").replace("name: op", "name: device") for line in SIZED]

    assert [] == messages(span(*(line for line in labels if not line.startswith("struct"))))


def test_sizes_like_nothing(messages):
    """Labels that are like no struct of the object are taken as they are: clang leaves out what nothing names."""
    assert [] == messages(span("labels:", "  - {name: this, size: 7, decoders: [{name: hex}]}"))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["struct: bits", "labels: [{name: low}]"], "'low' is a bit field"),
        (["struct: bits"], "'low' is a bit field"),
        (["struct: bits", "type: 1"], "struct bits does not begin with struct ebt_span"),
        (["struct: own_roles", "labels: [{name: pid, role: trace_id}]"], "a trace_id has 16 bytes, and 'pid' has 4"),
        (["struct: all_kinds", "labels: [{name: comm, role: event}]"], "'comm' is no number, as nanoseconds are"),
        (["struct: all_kinds", "labels: [{name: u8, role: start}]"], "the struct's head has the start already"),
        (["struct: all_kinds", "labels: [{name: u8, omit: 256}]"], "256 is never the value of 'u8'"),
        (["struct: all_kinds", "labels: [{name: flag, omit: 2}]"], "2 is never the value of 'flag'"),
        (["struct: all_kinds", "labels: [{name: u8, decoders: [{name: enum}]}]"], "'enum': the field is no enum"),
        (["struct: all_kinds", "labels: [{name: comm, decoders: [{name: uint}]}]"], "'uint'"),
        (["struct: all_kinds", "labels: [{name: u8, size: 2}]"], "is 2, but the size of 'u8' is 1"),
        (["struct: nothing_like_it"], "the object's BTF has no struct 'nothing_like_it': clang leaves out"),
    ],
)
def test_problems_of_structs(messages, lines, told):
    """What a struct does not allow is a problem with the label's key."""
    assert any(told in message for message in messages(span(*lines)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kaddrs: [tcp_sendmsg]", ""),
        ("kaddrs: [nothing]", "kaddrs[0]: the object has no variable 'kaddr_nothing'"),
        ("kaddrs: [short]", "kaddrs[0]: 'kaddr_short' has 4 bytes, an address has 8"),
        ("cgroup_id_map: {name: cgroups, regexps: [x]}", ""),
        ("cgroup_id_map: {name: cgroup, regexps: [x]}", "the object has no map 'cgroup': did you mean 'cgroups'?"),
        ("cgroup_id_map: {name: small, regexps: [x]}", "type: the keys of 'small' have 4 bytes, those of type hash"),
        ("cgroup_id_map: {name: small, type: cgrp_storage, regexps: [x]}", "name: the values of 'small' have 4 bytes"),
        ("cgroup_id_map: {name: roots, regexps: [x]}", "give the map keys of that size"),
        ("knobs: {level: -5, loud: true, roots: [bash]}", ""),
        ("knobs: {level: 2147483648}", "knobs.level: 2147483648 does not fit: 'level' goes from -2147483648"),
        ("knobs: {loud: 2}", "knobs.loud: 2 does not fit: 'loud' goes from 0 to 1"),
        ("knobs: {greeting: 1}", "knobs.greeting: 'greeting' is no number in the object"),
        ("knobs: {lvel: 1}", "knobs.lvel: the object has no `const volatile` variable 'lvel': did you mean 'level'?"),
        ("knobs: {rots: [a]}", "knobs.rots: the object has no map 'rots' for a list: did you mean 'roots'?"),
        ("knobs: {roots: [0123456789abcdef]}", "knobs.roots[0]: '0123456789abcdef' has 16 bytes"),
    ],
)  # fmt: skip
def test_object(messages, text, told):
    """What a file wants of its object must be there and of the right size."""
    found = messages(f"{ALL}{text}\n")

    assert [told] == [told for message in found if told in message] if told else found == []


def test_map_that_is_no_ring(messages):
    """A ring buffer must be one."""
    assert ["tracing.spans[0].ringbuf: 'cgroups' is another kind of map: its ring buffers are: events"] == messages(
        ALL.replace("events", "cgroups")
    )


def test_object_problems(messages, tmp_path):
    """What libbpf cannot open, and a section that it does not know, are problems of the object."""
    [broken] = messages(ALL, b"no ELF")
    [section] = messages(ALL, compile_records(tmp_path / "x.bpf.o", "-DNO_SUCH_SECTION").read_bytes())

    assert "cannot open the BPF object 'records-trace'" in broken
    assert "SEC(\"no_such_section/x\"): libbpf knows no such section, of the function 'nowhere'" in section


def test_both_files_at_once(messages):
    """Mistakes of the file and disagreements with the object are told together."""
    found = messages("colour: red\n" + ALL.replace("events", "event"))

    assert ["colour", "tracing.spans[0].ringbuf"] == [message.partition(": ")[0] for message in found]


def test_object_without_btf(messages, tmp_path):
    """An object that was compiled without BTF is told so, and nothing crashes."""
    source, output = tmp_path / "x.c", tmp_path / "x.bpf.o"
    source.write_text('__attribute__((section("raw_tp/sys_enter"))) int f(void *c) { return 0; }\n')
    command = [_find_clang(None), "-O2", "-target", "bpf", "-c", str(source), "-o", str(output)]
    subprocess.run(command, check=True)
    found = messages(f"{ALL}kaddrs: [tcp_sendmsg]\nknobs: {{loud: true}}\n", output.read_bytes())

    assert "tracing.spans[0].struct: the object has no BTF: compile it with -g, as `ebpftrace build` does" in found
    assert 4 == len(found)  # no ring buffer, no variables either


def test_resolve(caplog):
    """resolve() returns the layouts, logs warnings, and raises all problems with their lines."""
    document = load_document(ALL, source="a.yaml")
    with BpfObject("records", records()) as obj, caplog.at_level(logging.WARNING):
        [found] = resolve("records", "a.yaml", document.config, obj)
        wrong = load_document(ALL.replace("events", "event"), source="a.yaml")
        with pytest.raises(ConfigProblems, match=r"^a\.yaml:3: tracing.spans\[0\].ringbuf: "):
            resolve("records", "a.yaml", wrong.config, obj, lines=wrong.lines)

    assert ("all", []) == (found.name, caplog.records)
