# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
import logging

import pytest
from bcc_support import Bpf, Event, Kept

import ebpftrace.bcc
from ebpftrace.bcc.layouts import describe, layouts_of
from ebpftrace.bcc.tables import find_buffer
from ebpftrace.errors import ConfigError

LABELS = """
tracing:
  spans:
    - name: opened
      ringbuf: events
      labels:
        - {{name: begun, size: {begun}, role: start, decoders: [{{name: uint}}]}}
        - {{name: process, size: 4, decoders: [{{name: uint}}]}}
        - {{name: error, size: 4, decoders: [{{name: int}}, {{name: errno}}]}}
"""
STRUCT = """
tracing:
  spans:
    - {name: opened, ringbuf: events, struct: data_t}
"""


def layouts(record, structs=(), event_class=Event, **options):
    """The layouts of the buffer `events`."""
    options = {"program": "opens", "name": ""} | options
    buffer = find_buffer(Bpf(events=("perf", event_class)), "events")
    return layouts_of(describe(record, structs), buffer, **options)


def columns(layout):
    """What is read where."""
    return [(column.name, column.role, column.offset, column.size, column.kind) for column in layout.columns]


FIELDS = [("ts", "", 0, 8, "unsigned"), ("pid", "", 8, 4, "unsigned"), ("result", "", 12, 4, "signed")]


def test_structure_alone():
    """Of a structure alone all fields are attributes, and the buffer's name is the spans'."""
    [layout] = layouts(Event)

    assert FIELDS == columns(layout)
    assert ("events", "opens", "events", 16) == (layout.name, layout.program, layout.ringbuf, layout.size)
    assert {"ebpftrace.program": "opens"} == layout.attributes


def test_nothing_said():
    """Without a description, BCC's own knowledge is taken."""
    assert FIELDS == columns(layouts(None)[0])


def test_nothing_known():
    """When BCC knows nothing either, that is an error that says what to give."""
    for event_class in (None, type("", (ctypes.Structure,), {"_fields_": []})):
        with pytest.raises(ConfigError, match="cannot say what the records of 'events' are"):
            layouts(None, event_class=event_class)


def test_reserved_names():
    """A field with a reserved name has the role that the name stands for."""

    class Timed(ctypes.Structure):
        _fields_ = (("span_monotonic_timestamp_ns", ctypes.c_uint64), ("span_duration_ns", ctypes.c_uint64))

    assert ["start", "duration"] == [column.role for column in layouts(Timed)[0].columns]


def test_labels():
    """In the label form, sizes say where fields are; a name that is given goes over the file's."""
    [layout] = layouts(LABELS.format(begun=8), name="other")

    assert [("begun", "start", 0, 8, "raw"), ("process", "", 8, 4, "raw"), ("error", "", 12, 4, "raw")] == columns(
        layout
    )
    assert "other" == layout.name


@pytest.mark.parametrize(("structs", "event_class"), [(Event, None), ([Event], None), ((), Event)])
def test_labels_that_do_not_fit(structs, event_class):
    """Labels that do not fit the structure, given or known to BCC, are an error with line, key and remedy."""
    with pytest.raises(ConfigError) as caught:
        layouts(LABELS.format(begun=4), structs, event_class)

    assert (
        "bcc.yaml:7: tracing.spans[0].labels[0].size: 'begun' disagrees with struct Event: it ends at byte 4, where "
        "'ts' is, 8 bytes from byte 0 on: correct its size, or the size or padding of the label before it"
    ) == str(caught.value)


def test_labels_of_an_unknown_structure():
    """What nobody knows cannot be checked: the labels are believed."""
    [layout] = layouts(LABELS.format(begun=4), event_class=None)

    assert [0, 4, 8] == [column.offset for column in layout.columns]


def test_named_structure():
    """`struct:` names a ctypes structure that was given, or else what BCC saw submitted."""
    data_t = type("data_t", (ctypes.Structure,), {"_fields_": [("other", ctypes.c_uint16)]})

    assert FIELDS == columns(layouts(STRUCT)[0])
    assert [("other", "", 0, 2, "unsigned")] == columns(layouts(STRUCT, [data_t])[0])


def test_missing_structure():
    """A structure that nobody has is an error that says what there is."""
    with pytest.raises(ConfigError, match=r"spans\[0\].struct: no structure .* 'data_t' .*structs="):
        layouts(STRUCT, event_class=None)
    with pytest.raises(ConfigError, match="'data_t' is known: there are: Event"):
        layouts(STRUCT, Event, event_class=None)


def test_unknown_field():
    """A label that names no field is an error with the names there are."""
    text = STRUCT.replace("struct: data_t", "struct: data_t, labels: [{name: resolt}]")

    with pytest.raises(ConfigError, match=r"labels\[0\].name: .* has no field 'resolt': did you mean 'result'"):
        layouts(text)


def test_bit_field():
    """A bit field is refused, by name."""

    class Bits(ctypes.Structure):
        _fields_ = (("ts", ctypes.c_uint64), ("low", ctypes.c_uint32, 3))

    with pytest.raises(ConfigError) as caught:
        layouts(Bits)

    assert (
        "struct Bits: 'low' is a bit field, which has no bytes of its own: give the record a whole field instead"
        == str(caught.value)
    )


def test_other_buffer():
    """A file that does not describe the buffer is an error that says what it does."""
    with pytest.raises(ConfigError, match=r"bcc\.yaml: has no span with `ringbuf: events`: it describes: opens"):
        layouts(STRUCT.replace("ringbuf: events", "ringbuf: opens"))


def test_several_kinds_are_not_compared():
    """Where records of several types share a buffer, BCC's last structure says nothing of the others."""

    class Headed(ctypes.Structure):
        _fields_ = (("span", ebpftrace.bcc.SpanHead), ("number", ctypes.c_uint32))

    text = """
tracing:
  spans:
    - {name: one, ringbuf: events, type: 1, struct: Headed}
    - {name: two, ringbuf: events, type: 2, base: ebpftrace, labels: [{name: n, size: 2, decoders: [{name: uint}]}]}
"""
    one, two = layouts(text, Headed)

    assert (1, 2, 64, 58) == (one.type, two.type, one.size, two.size)
    assert 8 == one.type_offset == two.type_offset


def test_structure_of_another_buffer():
    """Where a file has several buffers, labels are compared with what BCC knows, not with another's structure."""
    other = type("other_t", (ctypes.Structure,), {"_fields_": [("only", ctypes.c_uint16)]})
    text = LABELS.format(begun=8) + "    - {name: other, ringbuf: others, struct: other_t}\n"

    assert 16 == layouts(text, other)[0].size


@pytest.mark.parametrize("record", [7, Event(), int, b"events"])
def test_no_description(record):
    """Anything else than a file or a structure is refused."""
    with pytest.raises(ConfigError, match="describes no record"):
        describe(record, ())


def test_no_structures():
    """So is what is given for structures and is none."""
    with pytest.raises(ConfigError, match=r"structs: 7 is no ctypes.Structure"):
        describe(STRUCT, [7])


def test_no_file(tmp_path):
    """A file that is not there, or no text, is an error with its path."""
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\n")

    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read: No such file"):
        describe(tmp_path / "none.yaml", ())
    with pytest.raises(ConfigError, match=r"bytes.yaml: cannot be read: 'utf-8' codec"):
        describe(tmp_path / "bytes.yaml", ())


def test_file_names_the_program(tmp_path):
    """The program is called what its file is; a role at the end of that says nothing."""
    (tmp_path / "opens-trace.yaml").write_text(STRUCT)

    assert "opens" == describe(tmp_path / "opens-trace.yaml", ()).program
    assert "bcc" == describe(None, ()).program


def test_loaders_part(caplog):
    """What a file wants of its loader is ignored, in one line: BCC has loaded the program."""
    with caplog.at_level(logging.WARNING):
        describe(STRUCT + "kaddrs: [tcp_sendmsg]\nknobs: {least: 5}\n", ())

    assert ["bcc.yaml: kaddrs, knobs: ignored: BCC has loaded the program already"] == [
        record.getMessage() for record in caplog.records
    ]


def test_callback(caplog):
    """With the application's own callback BCC reads: both get each record, also what was lost."""
    bpf, sink, seen, lost = Bpf(), Kept(), [], []
    record = LABELS.format(begun=8)
    reader = ebpftrace.bcc.spans(
        bpf, "events", record, to=sink, callback=lambda *args: seen.append(args), lost_callback=lost.append, pages=16
    )
    bpf.submit("events", Event(5, 6, -2))
    bpf["events"].opened["lost"](7)
    reader.close()
    bpf.submit("events", Event(5, 6, -2))
    stats = reader.stats()

    assert [(None, 16), (None, 16)] == [(cpu, size) for cpu, _, size in seen]
    assert ([7], 16) == (lost, bpf["events"].opened["pages"])
    assert [{"ebpftrace.program": "bcc", "process": 6, "error": "ENOENT"}] == [span.attributes for span in sink.spans]
    assert (1, {"buffer": 7, "queue": 0}) == (stats["records"], stats["lost"])


def test_callback_of_a_ring():
    """A ring buffer's callback keeps its answer, which tells BCC when to stop."""
    bpf, sink = Bpf(events=("ring", Event)), Kept()
    with ebpftrace.bcc.spans(bpf, None, None, to=sink, callback=lambda *_: -1) as reader:
        assert -1 == bpf.submit("events", Event(1, 2, 3))
        with pytest.raises(ConfigError, match=r"BCC reads these buffers: call perf_buffer_poll"):
            reader.poll()

    assert [("events", 2)] == [(span.name, span.attributes["pid"]) for span in sink.spans]


def test_drops_of_our_header():
    """What a program with our header could not submit is in the counters, also when the program is closed by then."""
    bpf = Bpf(events=("ring", Event), ebt_drops=("hash", None))
    bpf["ebt_drops"].sum = lambda index: ctypes.c_uint64(40 + index)
    with ebpftrace.bcc.spans(bpf, "events", to=Kept(), callback=lambda *_: 0) as reader:
        before = reader.stats()
        bpf["ebt_drops"].sum = None
        bpf.cleanup()

    assert (40, 40) == (before["lost"]["buffer"], reader.stats()["lost"]["buffer"])


def test_buffers_by_the_file():
    """Without a name of a buffer, those that the file describes are read."""
    bpf, sink = Bpf(events=("ring", Event), other=("perf", Event)), Kept()
    text = STRUCT + "    - {name: other, ringbuf: other, struct: data_t}\n"
    with ebpftrace.bcc.spans(bpf, record=text, to=sink, callback=lambda *_: 0) as reader:
        bpf.submit("other", Event(1, 2, 3))
        bpf.submit("events", Event(1, 2, 3))

    assert ("events", "other") == reader.buffers
    assert ["other", "opened"] == [span.name for span in sink.spans]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stamp": "middle"}, "stamp='middle': give 'start' or 'end'"),
        ({"pages": 3}, "pages=3: give a power of two"),
        ({"pages": 0}, "pages=0: give a power of two"),
        ({"buffer": []}, "buffer: the list is empty"),
    ],
)
def test_wrong_options(options, message):
    """An option that makes no sense is an error that says what does."""
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        ebpftrace.bcc.spans(Bpf(), **options)
