# SPDX-License-Identifier: Apache-2.0
"""The encoder in C: against the way in Python and through the SDK, field by field; its caches, chunks and refusals."""

from __future__ import annotations

import gc
import json
import logging
import os
import struct
import sys
import time
import weakref
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import HEAD_BYTES, batch, chain_of, clock, decoders, head, layout, layouts, places, records
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as sdk_encode
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.resources import Resource

from ebpftrace.config.layout import Column
from ebpftrace.config.resolve import resolve
from ebpftrace.kernel.object import BpfObject
from ebpftrace.programs import find
from ebpftrace.spans import _otlp, protobuf
from ebpftrace.spans.native import native_layout
from ebpftrace.spans.plan import REASONS, RingPlan
from ebpftrace.spans.sdk import SpanBuilder

DATA = Path(__file__).parents[1] / "data"


def encoder(*kinds, **arguments):
    """An encoder whose ring 0 has these layouts."""
    made = _otlp.Encoder(**arguments)
    made.set_ring(0, [native_layout(of, lambda _: None) for of in kinds])
    return made


def encoded(of, *content):
    """The spans of records, by the encoder."""
    made = encoder(of)
    made.feed(batch(*content).data, clock().offset_ns)
    return [span for _, _, payload, _ in made.take() for span in parsed(payload)]


def parsed(payload):
    """The spans of a payload."""
    return list(ScopeSpans.FromString(payload).spans)


def attributes(span):
    """A span's attributes, as Python has them."""
    values = {pair.key: pair.value for pair in span.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


# --- equality


def comparable(spans, once, again):
    """Messages without what is new each time, which is what two runs in Python do not agree on; attributes sorted."""
    for span, first, second in zip(spans, once, again, strict=True):
        if first.trace_id != second.trace_id:
            assert (16, True) == (len(span.trace_id), any(span.trace_id))
            span.trace_id = b""
        if first.span_id != second.span_id:
            assert (8, True) == (len(span.span_id), any(span.span_id))
            span.span_id = b""
        if first.start_ns != second.start_ns:
            assert abs(span.start_time_unix_nano - time.time_ns()) < 60 * 10**9
            if span.end_time_unix_nano < 2**64 - 1:  # else it ends when there is no later time
                span.end_time_unix_nano -= span.start_time_unix_nano
            span.start_time_unix_nano = 0
        pairs = sorted(span.attributes, key=lambda pair: pair.key)
        assert len(pairs) == len({pair.key for pair in pairs})
        del span.attributes[:]
        span.attributes.extend(pairs)
    return spans


def by_service(spans):
    """Spans by what they are sent with."""
    groups: dict[str, list] = {}
    for span in spans:
        groups.setdefault(span.service, []).append(span)
    return groups


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None, max_examples=200)
def test_equal(data):
    """Whatever layout and bytes: C, Python and the SDK's encoder say the same in every field, and count alike."""
    of = data.draw(layouts())
    found = batch(*data.draw(st.lists(records(of), max_size=6)))

    native = encoder(of)
    native.feed(found.data, clock().offset_ns)
    ring, other = RingPlan([of]), RingPlan([of])
    once, again = (by_service(plan.decode(found.data, places(found), clock())) for plan in (ring, other))

    counts = native.counts(0)
    assert (ring.counts.records, ring.counts.undecoded) == (counts.pop("records"), counts)
    chunks = {service: payload for service, program, payload, count in native.take() if program == "made" and count}
    assert once.keys() == chunks.keys()
    build = SpanBuilder(Resource({}))
    for service, made in once.items():
        [group] = sdk_encode([build(span) for span in made]).resource_spans
        [scope] = group.scope_spans
        ways = (scope.spans, parsed(protobuf.encode_spans(made)), parsed(chunks[service]))
        sdk, python, c = (list(comparable(list(spans), made, again[service])) for spans in ways)
        assert sdk == python
        assert sdk == c


def test_same_bytes():
    """Where nothing is random and no key is shared, C and Python write the same bytes."""
    of = layout(
        Column("name", "span_name", "", 56, 8, "char"),
        Column("error", "error", "", 64, 8, "char"),
        Column("number", "", "number", 72, 8, "unsigned"),
        Column("text", "", "key " * 40, 80, 200, "char"),
        Column("state", "", "state", 72, 1, "unsigned", None, decoders("static_map", static_map={1: "one"})),
        Column("issued", "event", "issued", 72, 4, "unsigned"),
        Column("t", "link_trace_id", "", 16, 16, "raw"),
        Column("s", "link_span_id", "", 32, 8, "raw"),
    )
    found = batch(*(head() + struct.pack("=8s8sQ200s", b"read", b"", number, b"x" * 200) for number in (1, 2**63)))
    native = encoder(of)
    native.feed(found.data, clock().offset_ns)

    [chunk] = native.take()
    expected = protobuf.encode_spans(RingPlan([of]).decode(found.data, places(found), clock()))
    assert ("", "made", expected, 2) == chunk


@pytest.mark.parametrize("program", ["exec", "sched"])
def test_recorded(program):
    """Records of a real kernel become the same bytes in C and in Python."""
    shipped = find(program)
    obj = BpfObject(program, shipped.object_bytes())
    plan = RingPlan(resolve(program, f"{shipped.stem}.yaml", shipped.config(), obj))
    recorded = (DATA / f"{program}.bin").read_bytes()
    found = batch(
        *(
            recorded[offset : offset + size]
            for offset, size in json.loads((DATA / f"{program}.json").read_text())["places"]
        )
    )
    native = encoder(*plan.layouts)
    native.feed(found.data, clock().offset_ns)

    [chunk] = native.take()
    expected = protobuf.encode_spans(plan.decode(found.data, places(found), clock()))
    assert ("", program, expected, found.records) == chunk


# --- what Python is asked


def asked(monkeypatch, answer, *, lasting=True, size=1):
    """A layout of one column that asks; and the values it was asked about."""
    seen = []

    def run(value):
        seen.append(value)
        return answer(value)

    monkeypatch.setattr("ebpftrace.spans.columns.chain", chain_of(run, lasting=lasting))
    return layout(Column("f", "", "key", 0, size, "unsigned" if size < 8 else "raw"), head=()), seen


def test_asks_once(monkeypatch):
    """Python is asked about each value once, over all batches."""
    of, seen = asked(monkeypatch, str)
    made = encoder(of)
    for _ in range(3):
        made.feed(batch(b"\1", b"\2", b"\1").data, 0)

    assert [1, 2] == seen
    [(_, _, payload, _)] = made.take()
    assert ["1", "2", "1"] * 3 == [attributes(span)["key"] for span in parsed(payload)]


@pytest.mark.parametrize("lasting", [True, False])
def test_answers_that_change(monkeypatch, lasting):
    """An answer that may change is asked for again after a second."""
    of, seen = asked(monkeypatch, str, lasting=lasting)
    made = encoder(of)
    made.feed(batch(b"\1").data, 0)
    made.feed(batch(b"\1").data, 0)
    assert [1] == seen
    time.sleep(1.05)
    made.feed(batch(b"\1").data, 0)

    assert ([1] if lasting else [1, 1]) == seen


def test_failures(monkeypatch):
    """A value that cannot be decoded costs its records, is told of, and is not tried for each of them."""
    of, seen = asked(monkeypatch, lambda value: 1 // (value - 1))
    errors = []
    made = _otlp.Encoder()
    made.set_ring(0, [native_layout(of, errors.append)])
    made.feed(batch(b"\1", b"\1", b"\2").data, 0)

    assert ([1, 2], 1) == (seen, len(errors))
    assert "label 'f': integer division" in str(errors[0])
    assert {**dict.fromkeys(REASONS, 0), "records": 3, "failed": 2} == made.counts(0)


def test_many_values(monkeypatch):
    """Ever new values do not grow the memory without bound, and each has its own answer."""
    of, seen = asked(monkeypatch, lambda value: value.hex() * 20, size=100)
    made = encoder(of)
    for turn in range(60):
        found = [struct.pack("=QQ84x", turn, number) for number in range(500)]
        made.feed(batch(*found).data, 0)
        payload = b"".join(chunk for _, _, chunk, _ in made.take())
        assert [value.hex() * 20 for value in found] == [attributes(span)["key"] for span in parsed(payload)]
        if turn == 10:
            before = resident_kib()

    assert 30_000 == len(seen)
    assert resident_kib() - before < 8 * 1024  # 50 turns of 4 KiB a value would be 100 MiB


def resident_kib():
    """This process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)


def test_wrong_answers():
    """What convert() may not answer is a TypeError, not a broken span."""
    [*rest, _] = native_layout(layout(head=()), lambda _: None)
    for answer in (3.5, 7, "text", b"three"):
        made = _otlp.Encoder()
        column = ("start", "call", 0, 8, b"", b"", -1, True, lambda _, answer=answer: answer)
        made.set_ring(0, [(*rest, (column,))])
        with pytest.raises(TypeError, match="convert"):
            made.feed(batch(bytes(8)).data, 0)


def test_interrupted():
    """An exception that is nobody's answer comes out of feed(), and the encoder goes on afterwards."""
    [*rest, _] = native_layout(layout(head=()), lambda _: None)
    answers = iter([KeyboardInterrupt, None])

    def convert(_):
        answer = next(answers)
        if answer:
            raise answer
        return answer

    made = _otlp.Encoder()
    made.set_ring(0, [(*rest, (("", "call", 0, 8, b"", b"", -1, False, convert),))])
    with pytest.raises(KeyboardInterrupt):
        made.feed(batch(bytes(8)).data, 0)
    made.feed(batch(bytes(8)).data, 0)
    assert 1 == made.take()[0][3]


def test_reentered():
    """The encoder cannot be changed or fed while it asks."""
    [*rest, _] = native_layout(layout(head=()), lambda _: None)
    made, errors = _otlp.Encoder(), []

    def convert(_):
        for call in (lambda: made.set_ring(0, None), lambda: made.feed(b"", 0), made.take):
            with pytest.raises(RuntimeError) as error:
                call()
            errors.append(str(error.value))

    made.set_ring(0, [(*rest, (("", "call", 0, 8, b"", b"", -1, True, convert),))])
    made.feed(batch(bytes(8)).data, 0)
    assert ["the encoder is in use"] * 3 == errors


def test_layouts_that_change_meanwhile():
    """A list of layouts may change while it is read, by what it says of itself: the encoder has its own."""
    [*rest, _] = native_layout(layout(head=()), lambda _: None)
    layouts = []

    class Lasting:
        def __bool__(self):
            layouts.clear()
            return True

    described = (*rest, (("", "call", 0, 8, b"", b"", -1, Lasting(), lambda _: None),))
    layouts += [described, (*rest, ())]
    made = _otlp.Encoder()
    made.set_ring(0, layouts)
    made.feed(batch(bytes(8)).data, 0)

    assert [] == layouts
    assert 1 == made.take()[0][3]


# --- chunks


def test_chunks():
    """Spans are grouped by service and program; a chunk that is full is closed."""
    rings = [layout(), layout(program="spam"), layout(service="db")]
    [span] = encoded(rings[0], head())
    made = _otlp.Encoder(chunk_bytes=3 * (span.ByteSize() + 3))
    for number, of in enumerate(rings):
        made.set_ring(number, [native_layout(of, lambda _: None)])
    made.feed(batch(*((ring, head()) for ring in (0, 1, 2, 0, 0, 0))).data, 0)
    assert 6 * (span.ByteSize() + 3) == made.pending

    taken = [(service, program, count) for service, program, _, count in made.take()]
    assert [("", "made", 3), ("", "made", 1), ("", "spam", 1), ("db", "made", 1)] == taken
    assert ([], 0) == (made.take(), made.pending)


def test_many_services():
    """Services that come from records are all kept apart, however many there are."""
    of = layout(Column("service", "service", "", HEAD_BYTES, 8, "char"))
    made = encoder(of)
    names = [f"s{number}" for number in range(50)]
    made.feed(batch(*(head() + name.encode().ljust(8, b"\0") for name in names * 2)).data, 0)

    counts: dict[str, int] = {}
    for service, _, payload, count in made.take():
        assert count == len(parsed(payload))
        counts[service] = counts.get(service, 0) + count
    assert dict.fromkeys(names, 2) == counts


def test_large_span():
    """A span may be larger than a chunk."""
    of = layout(Column("text", "", "key", HEAD_BYTES, 3000, "raw"))
    made = encoder(of, chunk_bytes=100)
    made.feed(batch(head() + b"x" * 3000, head() + b"y" * 3000).data, 0)

    assert [1, 1] == [count for *_, count in made.take()]


# --- ids


def test_random_ids():
    """Ids that records do not have are different ones, in every encoder."""
    spans = [span for _ in range(3) for span in encoded(layout(head=(), size=1), *[b"\0"] * 1000)]

    assert 3000 == len({span.trace_id for span in spans}) == len({span.span_id for span in spans})


def test_forked():
    """A forked child does not go on with its parent's random ids."""
    made = encoder(layout(head=(), size=1))
    made.feed(batch(b"\0").data, 0)
    made.take()
    source, sink = os.pipe()
    pid = os.fork()
    made.feed(batch(b"\0").data, 0)
    [span] = parsed(made.take()[0][2])
    if pid == 0:
        os.write(sink, span.trace_id)
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(sink)
    with os.fdopen(source, "rb") as file:
        assert span.trace_id != file.read(16)


# --- refusals


@pytest.mark.parametrize(
    "data", [b"\0", bytes(7), struct.pack("=II", 0, 1), struct.pack("=II", 0, 0xFFFFFFFF) + bytes(8)]
)
def test_broken_batch(data):
    """A batch that ends within a record is refused; nothing is read behind it."""
    with pytest.raises(ValueError, match="the batch ends within a record"):
        encoder(layout()).feed(data, 0)


def test_stray():
    """Records of a ring that nobody described are counted."""
    made = encoder(layout())
    made.set_ring(5, [native_layout(layout(), lambda _: None)])
    made.set_ring(5, None)
    made.feed(batch((1, head()), (5, head()), (2**32 - 1, head())).data, 0)

    assert (3, []) == (made.stray, made.take())
    assert {"records": 0, **dict.fromkeys(REASONS, 0)} == made.counts(5) == made.counts(77)


GOOD = ("", "uint", 0, 8, b"", b"", -1, True, None)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, "colour", "colour"),
        (0, "kind", "cannot be read as uint"),
        (0, "trace_id", "cannot be read as uint"),
        (1, "guess", "guess"),
        (1, "bytes", "cannot be read as bytes"),
        (1, "bool", "cannot be read as bool"),
        (1, "call", "cannot be called"),
        (2, 1, "beyond its record"),
        (2, 2**32 - 4, "beyond its record"),
        (3, 3, "cannot be read"),
        (3, 0, "cannot be read"),
        (5, b"12", "omit"),
        (6, 256, "share"),
    ],
)
def test_impossible_column(place, value, message):
    """A column that would be read beyond its record, or wrongly, is refused."""
    column = list(GOOD)
    column[place] = value
    [*rest, _] = native_layout(layout(head=(), size=8), lambda _: None)

    with pytest.raises((ValueError, TypeError), match=message):
        _otlp.Encoder().set_ring(0, [(*rest, (tuple(column),))])


@pytest.mark.parametrize("layouts_", [5, [5], [()], [(None,) * 10], [(None, 0, 8, "p", b"", b"", 1, b"", (), (5,))]])
def test_impossible_layout(layouts_):
    """What is no layout is refused, and the ring is as it was."""
    made = encoder(layout())
    with pytest.raises((TypeError, ValueError)):
        made.set_ring(0, layouts_)
    made.feed(batch(head()).data, 0)
    assert 1 == made.counts(0)["records"]


@pytest.mark.parametrize("arguments", [{"chunk_bytes": 0}, {"chunk_bytes": -1}])
def test_impossible_encoder(arguments):
    """A chunk has at least one byte."""
    with pytest.raises(ValueError, match="chunk_bytes"):
        _otlp.Encoder(**arguments)


def test_freed():
    """An encoder gives back all that it held, also when what it asks holds the encoder."""

    class Held:
        pass

    held, made = Held(), _otlp.Encoder()
    gone = weakref.ref(held)

    def convert(_, held=held, made=made):
        return None

    [*rest, _] = native_layout(layout(head=(), size=8), lambda _: None)
    made.set_ring(0, [(*rest, (("", "call", 0, 8, b"", b"", -1, True, convert),))])
    made.feed(batch(bytes(8)).data, 0)
    before = sys.getrefcount(convert)
    del held, made, convert
    gc.collect()

    assert before > 2
    assert gone() is None


def test_logging_is_the_callers(caplog):
    """The encoder itself writes nothing into the log: its user does, once."""
    of = layout(Column("trace", "trace_id", "", 0, 8, "char"), head=())
    with caplog.at_level(logging.DEBUG):
        assert [] == encoded(of, b"anything")
    assert [] == caplog.messages
