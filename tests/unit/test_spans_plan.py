# SPDX-License-Identifier: Apache-2.0
"""Records of a real kernel, kept in tests/data (see record.py there), and every role that a column can have."""

from __future__ import annotations

import json
import logging
import random
import struct
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import HEAD, HEAD_BYTES, OFFSET_NS, batch, chain_of, clock, decoders, head, layout, places

from ebpftrace.config.layout import Column
from ebpftrace.config.resolve import resolve
from ebpftrace.errors import ConfigError
from ebpftrace.kernel.object import BpfObject
from ebpftrace.programs import find
from ebpftrace.spans.clock import Clock
from ebpftrace.spans.plan import REASONS, RingPlan

DATA = Path(__file__).parents[1] / "data"
TRACE_ID, SPAN_ID = 0x0102030405060708090A0B0C0D0E0F10, 0x1112131415161718


def load(program):
    """The plan of a shipped program, and its object."""
    shipped = find(program)
    obj = BpfObject(program, shipped.object_bytes())
    return RingPlan(resolve(program, f"{shipped.stem}.yaml", shipped.config(), obj)), obj


def recorded(program):
    """What the recording says, its bytes, and a clock that stands as it stood then."""
    facts = json.loads((DATA / f"{program}.json").read_text())
    then = Clock(wall=lambda: facts["offset_ns"], monotonic=lambda: 0)
    return facts, memoryview((DATA / f"{program}.bin").read_bytes()), then


def decoded(program):
    """The spans of a recording, and what the recording says."""
    plan, _ = load(program)
    facts, data, then = recorded(program)
    spans = plan.decode(data, facts["places"], then)
    assert (len(facts["places"]), 0) == (plan.counts.records, sum(plan.counts.undecoded.values()))
    return spans, facts


def test_the_applications_dice():
    """Ids are neither taken from the application's random numbers nor decided by its seed."""
    layout_ = layout(Column("n", "", "n", 0, 4, "unsigned"), head=(), size=4)
    ids = []
    for _ in range(2):
        random.seed(1)
        before = random.getstate()
        [span] = RingPlan([layout_]).decode(memoryview(bytes(4)), [(0, 4)], clock())
        ids += [span.trace_id, span.span_id]
        assert before == random.getstate()

    assert 4 == len(set(ids))


def test_sched_identity():
    """Records of `sched` are spans below the published span, in its trace, with ids of their own."""
    spans, _ = decoded("sched")
    ids = {span.span_id for span in spans}

    assert {(TRACE_ID, SPAN_ID)} == {(span.trace_id, span.parent_span_id) for span in spans}
    assert len(spans) == len(ids)
    assert 0 not in ids
    assert {"sched_switch", "sched_wakeup", "sleep"} <= {span.name for span in spans}


@pytest.mark.parametrize("program", ["exec", "sched"])
def test_times(program):
    """Kernel time becomes the wall time at which it happened."""
    spans, facts = decoded(program)

    for span in spans:
        assert facts["began_ns"] - 1_000_000 <= span.start_ns <= span.end_ns <= facts["ended_ns"] + 1_000_000


def test_sched_attributes():
    """A wait knows thread, system call and duration; what the record does not know is no attribute."""
    spans, facts = decoded("sched")
    slept = next(span for span in spans if span.name == "sleep")

    assert 19_000_000 <= slept.end_ns - slept.start_ns < 200_000_000
    assert (facts["pid"], facts["tid"]) == (slept.attributes["process.pid"], slept.attributes["thread.id"])
    assert "clock_nanosleep" == slept.attributes["ebpftrace.sched.syscall"]
    assert ("sched", "tp_btf/sched_switch") == tuple(
        slept.attributes[f"ebpftrace.{key}"] for key in ("program", "hook")
    )
    assert "ebpftrace.sched.waker.tid" not in slept.attributes  # a timer's interrupt


def test_sched_switch():
    """A switch has no duration; its state is in words, its flag is a boolean."""
    spans, _ = decoded("sched")
    switches = [span for span in spans if span.name == "sched_switch"]

    for span in switches:
        assert span.start_ns == span.end_ns
        assert isinstance(span.attributes["ebpftrace.sched.preempt"], bool)
        assert span.attributes["ebpftrace.sched.state"] in ("running", "interruptible", "uninterruptible")


def test_exec():
    """Records of `exec` are named after the binary and have arguments, exit codes and errors."""
    spans, facts = decoded("exec")
    true = next(span for span in spans if span.name == "exec true")
    killed = next(span for span in spans if span.error and span.error.startswith("killed"))

    assert ("true", "an argument", "café") == true.attributes["process.command_args"]
    assert (0, None) == (true.attributes["process.exit.code"], true.error)
    assert facts["pid"] == true.attributes["process.parent_pid"]
    assert true.attributes["process.executable.path"].endswith("/true")
    assert "killed by SIGKILL" == killed.error
    assert "process.exit.code" not in killed.attributes


def test_exec_chain():
    """A binary that was replaced by another one has neither exit code nor error; the last one has."""
    spans, _ = decoded("exec")
    last = next(span for span in spans if span.error == "exit code 3")
    chain = [span for span in spans if span.attributes["process.pid"] == last.attributes["process.pid"]]

    assert ["exec sh", "exec env", "exec sh"] == [span.name for span in chain]
    assert [0, 1, 2] == [span.attributes["ebpftrace.exec.chain"] for span in chain]
    assert [None, None, 3] == [span.attributes.get("process.exit.code") for span in chain]
    assert [None, None, "exit code 3"] == [span.error for span in chain]


_plan, _object = load("exec")


@given(st.data())
def test_any_bytes(data):
    """Whatever a shipped program's record has in it, decoding raises nothing, and what makes no span is counted."""
    size = _object.btf.struct_size("ebt_exec_process")
    record = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
    struct.pack_into("I", record, 8, 1)
    undecoded = sum(_plan.counts.undecoded.values())

    spans = _plan.decode(memoryview(record), [(0, size)], clock())
    assert 1 == len(spans) + sum(_plan.counts.undecoded.values()) - undecoded


# --- layouts by hand


def decode(of, *records):
    """The spans of records of one layout, and what was counted."""
    plan = RingPlan(of if isinstance(of, list) else [of])
    found = batch(*records)
    return plan.decode(found.data, places(found), clock()), plan.counts.stats()


def only(of, *records):
    """The span of one record."""
    [span], stats = decode(of, *records)
    assert (1, 1) == (stats.records, stats.spans)
    return span


def extra(*columns):
    """Columns behind the head, one after the other."""
    placed, offset = [], HEAD_BYTES
    for name, role, key, size, kind, *more in columns:
        placed.append(Column(name, role, key, offset, size, kind, *more))
        offset += size
    return layout(*placed)


def test_head():
    """Ids come in the order of memory, times from the kernel's clock."""
    span = only(layout(), head(7, 3))

    assert int.from_bytes(bytes(range(1, 17)), "big") == span.trace_id
    assert (int.from_bytes(bytes(range(17, 25)), "big"), int.from_bytes(bytes(range(25, 33)), "big")) == (
        span.span_id,
        span.parent_span_id,
    )
    assert (OFFSET_NS + 7, OFFSET_NS + 10) == (span.start_ns, span.end_ns)
    assert ("thing", "made", "internal", "unset", None, "") == (
        span.name,
        span.program,
        span.kind,
        span.status,
        span.error,
        span.service,
    )
    assert {"ebpftrace.program": "made", "ebpftrace.hook": "tp_btf/thing"} == span.attributes


def test_without_a_head():
    """A record that says nothing of traces is a root span of its own, now, without a duration."""
    before = time.time_ns()
    of = layout(Column("parent", "parent_span_id", "", 0, 8, "raw"), head=(), size=8)
    first, second = decode(of, bytes(range(8)), bytes(range(8)))[0]

    assert 0 == first.parent_span_id
    assert first.trace_id != second.trace_id != 0
    assert first.span_id != second.span_id != 0
    assert before <= first.start_ns == first.end_ns <= time.time_ns()


def test_zero_ids():
    """Without a trace id there is no span; without a span id it gets one; without a parent it is a root."""
    spans, stats = decode(layout(), head(trace_id=bytes(16)), head(span_id=bytes(8)), head(parent=bytes(8)))

    assert {**dict.fromkeys(REASONS, 0), "no_trace_id": 1} == stats.undecoded
    assert 0 not in {span.span_id for span in spans}
    assert [False, True] == [span.parent_span_id == 0 for span in spans]


def test_ids_as_text():
    """Ids whose decoders make text of them are read as hexadecimal digits."""
    text = Column("trace_id", "trace_id", "", 0, 32, "char")
    of = layout(text, Column("id", "span_id", "", 32, 8, "raw", None, decoders("hex")), head=())
    span = only(of, b"00000000000000000000000000000abc" + bytes(7) + b"\x0f")

    assert (0xABC, 15) == (span.trace_id, span.span_id)


def test_id_that_is_none(caplog):
    """Text that is no id costs the record; the first one is in the log, with label and text."""
    of = layout(Column("trace", "trace_id", "", 0, 8, "char"), head=())
    with caplog.at_level(logging.WARNING, "ebpftrace.spans"):
        spans, stats = decode(of, b"anything", b"whatever")

    assert ([], 2) == (spans, stats.undecoded["failed"])
    [line] = caplog.messages
    assert "made.yaml: span 'thing': label 'trace': 'anything' is no id" in line


@pytest.mark.parametrize(
    ("start", "duration", "expected"),
    [
        (2**64 - 1, 5, (2**64 - 1, 2**64 - 1)),
        (10, 2**64 - 1, (OFFSET_NS + 10, 2**64 - 1)),
    ],
)
def test_times_that_no_clock_shows(start, duration, expected):
    """A time beyond 64 bits of nanoseconds is the last one that there is."""
    span = only(layout(), head(start, duration))

    assert expected == (span.start_ns, span.end_ns)


def test_negative_duration():
    """A span that ended before it began has no duration."""
    of = layout(Column("took", "duration", "", HEAD_BYTES, 4, "signed"), head=HEAD[:4])
    span = only(of, head() + struct.pack("=i", -5))

    assert span.start_ns == span.end_ns


@pytest.mark.parametrize(
    ("value", "expected"), [("server", "server"), ("Client", "client"), ("4", "producer"), ("", "internal")]
)
def test_kind(value, expected):
    """A kind is a word or OTLP's number; nothing leaves it as the file says."""
    of = extra(("kind", "kind", "", 8, "char"))

    assert expected == only(of, head() + value.encode().ljust(8, b"\0")).kind


@pytest.mark.parametrize(
    ("number", "expected"), [(0, ("unset", None)), (1, ("ok", None)), (2, ("error", None)), (3, None)]
)
def test_status(number, expected):
    """A status is a word or OTLP's number; another one makes no span."""
    spans, stats = decode(extra(("status", "status", "", 1, "unsigned")), head() + bytes((number,)))

    assert [expected] * (expected is not None) == [(span.status, span.error) for span in spans]
    assert int(expected is None) == stats.undecoded["failed"]


def test_texts():
    """Name, error and service come from the record where it has them, as text whatever they are."""
    of = extra(
        ("name", "span_name", "", 8, "char"),
        ("errno", "error", "", 4, "signed", 0),
        ("service", "service", "", 8, "char"),
    )
    full = only(of, head() + struct.pack("=8si8s", b"read\xff", -5, b"db"))
    empty = only(of, head() + struct.pack("=8si8s", b"", 0, b""))

    assert ("read\ufffd", "-5", "db") == (full.name, full.error, full.service)
    assert ("thing", None, "") == (empty.name, empty.error, empty.service)


def test_links():
    """Each trace id and the span id behind it are a link, unless one is zero; half a link is none."""
    pair = (("t", "link_trace_id", "", 16, "raw"), ("s", "link_span_id", "", 8, "raw"))
    of = extra(*pair, ("lone", "link_trace_id", "", 16, "raw"), *pair, *pair)
    one, two = bytes(15) + b"\1", bytes(7) + b"\2"
    span = only(of, head() + one + two + one + bytes(16) + two + one + two)

    assert ((1, 2), (1, 2)) == span.links


def test_events():
    """A time with a name is an event; the time 0 is none."""
    of = extra(("a", "event", "issued", 8, "unsigned"), ("b", "event", "merged", 8, "unsigned"))

    assert (("issued", OFFSET_NS + 12),) == only(of, head() + struct.pack("=QQ", 12, 0)).events


ATTRIBUTES = {
    "unsigned": (8, struct.pack("=Q", 2**64 - 1), 2**64 - 1),
    "signed": (2, struct.pack("=h", -2), -2),
    "bool": (1, b"\2", True),
    "float": (4, struct.pack("=f", 0.5), 0.5),
    "char": (8, "é".encode() + b"\xc3\0x", "é\ufffd"),
    "raw": (3, b"\0\xab\1", "00ab01"),
}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_attribute(kind):
    """Without decoders, an attribute has the type of its field."""
    size, data, expected = ATTRIBUTES[kind]
    value = only(extra(("f", "", "key", size, kind)), head() + data.ljust(size, b"\0")).attributes["key"]

    assert (type(expected), expected) == (type(value), value)


@pytest.mark.parametrize(
    ("kind", "omit", "data"),
    [
        ("unsigned", 7, b"\7\0"),
        ("signed", -1, b"\xff\xff"),
        ("raw", -1, b"\xff\xff"),
        ("raw", 7, b"\7\0"),
        ("raw", "x", b"x\0"),
        ("char", "x", b"x\0"),
        ("char", 7, b"7\0"),
    ],
)
def test_omit(kind, omit, data):
    """A value that means nothing is no attribute; others are."""
    of = extra(("f", "", "key", 2, kind, omit))

    assert "key" not in only(of, head() + data).attributes
    assert "key" in only(of, head() + b"ab").attributes


def test_omitted_value_that_does_not_fit():
    """A value that the field cannot have is never omitted."""
    of = extra(("f", "", "key", 1, "unsigned", -1))

    assert 255 == only(of, head() + b"\xff").attributes["key"]


def test_several_decoders():
    """Decoders are applied one after another."""
    of = extra(("f", "", "key", 1, "unsigned", None, decoders("bool", "static_map", static_map={1: "yes"})))

    assert "yes" == only(of, head() + b"\5").attributes["key"]


def test_skipped():
    """A record that a decoder filters out makes no span, and is counted as that."""
    of = extra(("f", "", "key", 4, "char", None, decoders("regexp", regexps=["^a"])))
    spans, stats = decode(of, head() + b"abcd", head() + b"bcde")

    assert (1, 1) == (len(spans), stats.undecoded["skipped"])


def test_shared_key():
    """Of columns with the same key the first that has a value counts; a column wins over what all spans have."""
    rows = [(f"f{number}", "", "key", 1, "unsigned", 0) for number in range(3)]
    of = extra(*rows, ("hook", "", "ebpftrace.hook", 2, "char"))

    found = only(of, head() + b"\0\2\3hi").attributes
    assert {"ebpftrace.program": "made", "ebpftrace.hook": "hi", "key": 2} == found
    assert "tp_btf/thing" == only(of, head() + bytes(5)).attributes["ebpftrace.hook"]


def test_one_field_twice():
    """A field may be several attributes, read in several ways, and lie over others."""
    of = layout(
        Column("a", "", "number", HEAD_BYTES, 4, "unsigned"),
        Column("b", "", "text", HEAD_BYTES, 4, "char"),
        Column("c", "", "half", HEAD_BYTES + 2, 2, "raw"),
    )
    attributes = only(of, head() + b"abcd").attributes

    assert (int.from_bytes(b"abcd", "little"), "abcd", "6364") == tuple(
        attributes[key] for key in ("number", "text", "half")
    )


def test_types():
    """The record's type chooses its layout; a type that nobody described is counted, and so is a record too short."""
    kinds = [layout(type=number, name=f"kind {number}") for number in (1, 2)]
    spans, stats = decode(kinds, head(kind=2), head(kind=1), head(kind=3), head(kind=1)[:-1], b"12345678901", b"")

    assert ["kind 2", "kind 1"] == [span.name for span in spans]
    assert {"short": 3, "unknown_type": 1} == {reason: count for reason, count in stats.undecoded.items() if count}
    assert (6, 2) == (stats.records, stats.spans)


def test_types_in_different_places():
    """Layouts may have their types in different places, or none, and are asked in their order."""
    kinds = [
        layout(type=9, type_offset=HEAD_BYTES, size=HEAD_BYTES + 4, name="behind"),
        layout(type=2, name="within"),
        layout(name="any"),
    ]
    spans, _ = decode(kinds, head() + b"\t\0\0\0", head(kind=2), head(kind=5))

    assert ["behind", "within", "any"] == [span.name for span in spans]


def test_longer_records():
    """What a record has behind its fields is ignored."""
    assert "thing" == only(layout(), head() + b"more").name


def test_answers_that_change(monkeypatch):
    """The answer of a decoder that is not for ever is asked for again after a second."""
    now, answers = [100.0], iter("ab")
    monkeypatch.setattr("ebpftrace.spans.plan.time", SimpleNamespace(monotonic=lambda: now[0], time_ns=time.time_ns))
    monkeypatch.setattr("ebpftrace.spans.columns.chain", chain_of(lambda _: next(answers)))
    plan = RingPlan([layout(Column("f", "", "key", 0, 1, "unsigned"), head=())])

    found = []
    for later in (0.0, 0.5, 0.7):
        now[0] += later
        [span] = plan.decode(memoryview(b"\1"), [(0, 1)], clock())
        found.append(span.attributes["key"])
    assert ["a", "a", "b"] == found


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (Column("f", "", "key", 56, 3, "unsigned"), "label 'f': 3 bytes cannot be read as 'unsigned'"),
        (Column("f", "", "key", 56, 2, "raw", None, decoders("nothing")), "label 'f': .*no such decoder"),
    ],
)
def test_impossible_column(column, message):
    """A column that cannot be read, or decoded, is a ConfigError with the place in the file."""
    with pytest.raises(ConfigError, match=f"made.yaml: span 'thing': {message}"):
        RingPlan([layout(column)])
