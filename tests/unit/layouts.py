# SPDX-License-Identifier: Apache-2.0
"""What the tests of plans, encoder and pipelines share: layouts written by hand, drawn ones, and batches of records."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from ebpftrace.config.layout import Column, RecordLayout
from ebpftrace.config.model import DecoderConfig
from ebpftrace.decoders import Chain
from ebpftrace.kernel.ringbuf import Batch
from ebpftrace.spans.clock import Clock

OFFSET_NS = 1_700_000_000_000_000_000
TRACE_ID, SPAN_ID, PARENT_ID = bytes(range(1, 17)), bytes(range(17, 25)), bytes(range(25, 33))
HEAD_BYTES = 56  # struct ebt_span
HEAD = (
    Column("start", "start", "", 0, 8, "unsigned"),
    Column("trace_id", "trace_id", "", 16, 16, "raw"),
    Column("parent_span_id", "parent_span_id", "", 32, 8, "raw"),
    Column("span_id", "span_id", "", 40, 8, "raw"),
    Column("duration", "duration", "", 48, 8, "unsigned"),
)


def clock():
    """A clock that stands."""
    return Clock(wall=lambda: OFFSET_NS, monotonic=lambda: 0)


def decoders(*names, **keys):
    """The decoders of a label; keys are for the last one."""
    plain = [DecoderConfig(name) for name in names[:-1]]
    return (*plain, DecoderConfig(names[-1], **keys))


def chain_of(run, *, lasting=False):
    """What stands in for `decoders.chain`: chains of one function."""
    return lambda *_, **__: Chain(run, lasting, "text")


def layout(*columns, size=None, head=HEAD, **changes):
    """The layout of a record that begins with `struct ebt_span`."""
    columns = (*head, *columns)
    fields = {
        "program": "made",
        "where": "made.yaml: span 'thing'",
        "name": "thing",
        "ringbuf": "events",
        "service": "",
        "kind": "",
        "type": None,
        "type_offset": 8,
        "size": max((column.offset + column.size for column in columns), default=8) if size is None else size,
        "columns": columns,
        "attributes": {"ebpftrace.program": "made", "ebpftrace.hook": "tp_btf/thing"},
    }
    return RecordLayout(**fields | changes)


def head(start=1000, duration=500, *, kind=0, trace_id=TRACE_ID, parent=PARENT_ID, span_id=SPAN_ID):
    """The first bytes of a record: `struct ebt_span`."""
    return struct.pack("=QII16s8s8sQ", start, kind, 0, trace_id, parent, span_id, duration)


def batch(*records):
    """Records, each a pair of ring and bytes or only bytes, as the reader hands them over."""
    data = b""
    for record in records:
        ring, content = record if isinstance(record, tuple) else (0, record)
        data += struct.pack("=II", ring, len(content)) + content + bytes(-len(content) % 8)
    return Batch(memoryview(data), len(records))


def places(found):
    """Where the records of a batch lie."""
    return [(offset, size) for _, offset, size in found]


# --- any layout

_SIZES = {"unsigned": (1, 2, 4, 8), "signed": (1, 2, 4, 8), "float": (4, 8), "bool": (1,)}
_WORDS = decoders("string", "regexp", regexps=["[a-z]+"])
_CHAINS = {
    "unsigned": ((), decoders("static_map", static_map={0: "none", 1: "one", 255: "ok", "7": ""}), decoders("bool")),
    "signed": ((), decoders("static_map", static_map={0: "none", -1: "minus"}, allow_unknown=True)),
    "float": ((),),
    "bool": ((), decoders("static_map", static_map={"0": "no", "1": "yes"})),
    "char": ((), _WORDS, decoders("argv")),
    "raw": ((), decoders("hex"), decoders("string"), _WORDS),
}
_KINDS = decoders("static_map", static_map={0: "", 1: "server", 2: "client", 3: "3", 4: "none of them"})
_STATUSES = decoders("static_map", static_map={0: "unset", 1: "ok", 2: "error", 3: "2", 4: "none of them"})


@st.composite
def _fields(draw):
    """Kind, size, omit and decoders of a field."""
    kind = draw(st.sampled_from(sorted(_CHAINS)))
    size = draw(st.sampled_from(_SIZES[kind])) if kind in _SIZES else draw(st.sampled_from((1, 3, 8, 16, 40, 200)))
    numbers = st.none() | st.sampled_from((0, 1, -1, 97, 255))
    omit = draw(numbers if kind != "char" else st.none() | st.sampled_from(("", "a", "é", 0)))
    chain = draw(st.sampled_from(_CHAINS[kind]))
    if kind == "raw" and size == 8:
        chain = draw(st.sampled_from((*_CHAINS[kind], decoders("uint"))))
    return kind, size, omit, chain


_ROLE_FIELDS = {
    "trace_id": [("raw", 16, ()), ("raw", 16, decoders("hex")), ("raw", 8, ()), ("char", 16, ())],
    "span_id": [("raw", 8, ()), ("raw", 8, decoders("hex")), ("unsigned", 8, ()), ("raw", 4, decoders("hex"))],
    "start": [("unsigned", 8, ()), ("raw", 8, decoders("uint")), ("signed", 4, ()), ("float", 8, ()), ("char", 4, ())],
    "kind": [("unsigned", 1, ()), ("unsigned", 1, _KINDS), ("char", 8, ())],
    "status": [("unsigned", 1, ()), ("unsigned", 1, _STATUSES), ("char", 8, ())],
    "span_name": [("char", 16, ()), ("unsigned", 1, ()), ("raw", 16, decoders("string")), ("bool", 1, ())],
}
_LIKE = {"parent_span_id": "span_id", "link_trace_id": "trace_id", "link_span_id": "span_id", "duration": "start"}
_LIKE |= {"event": "start", "error": "span_name", "service": "span_name"}
_ROLES = (*_ROLE_FIELDS, "parent_span_id", "duration", "error", "service")


@st.composite
def layouts(draw):
    """Layouts with any roles, kinds and decoders; fields lie anywhere, also over each other."""
    columns = []
    roles = draw(st.lists(st.sampled_from(_ROLES), unique=True))
    roles += draw(st.lists(st.sampled_from(("link_trace_id", "link_span_id", "event")), max_size=6))
    for number, role in enumerate(roles):
        kind, size, chain = draw(st.sampled_from(_ROLE_FIELDS[_LIKE.get(role, role)]))
        omit = draw(st.none() | st.sampled_from((0, 1))) if kind != "float" else None
        columns.append(Column(role, role, f"e{number}", draw(st.integers(0, 80)), size, kind, omit, chain))
    for number in range(draw(st.integers(0, 8))):
        kind, size, omit, chain = draw(_fields())
        key = draw(st.sampled_from((f"key {number}", f"key {number}", "shared", "ebpftrace.hook", "ü" * 70)))
        columns.append(Column(f"f{number}", "", key, draw(st.integers(0, 80)), size, kind, omit, chain))
    texts = st.sampled_from(("", "thing", "é" * 100))
    return layout(
        *draw(st.permutations(columns)),
        head=draw(st.sampled_from(((), HEAD))) if not roles else (),
        name=draw(texts),
        service=draw(texts),
        kind=draw(st.sampled_from(("", "internal", "server", "consumer"))),
        type=draw(st.none() | st.just(1)),
        attributes=draw(st.sampled_from(({}, {"ebpftrace.hook": "h"}, {"ebpftrace.program": "made", "x": "y" * 200}))),
    )


def _content(size):
    words = [b"\0" * size, b"a" * size, b"server", b"error", b"4", "éa€".encode(), b"\xff\xc3(", b"\1", b"\x80" * size]
    return st.one_of(st.sampled_from([word[:size].ljust(size, b"\0") for word in words]), st.binary(max_size=size))


@st.composite
def records(draw, of):
    """Bytes of records of a layout: any, or made of what means something; a few too short or of another type."""
    record = bytearray(draw(st.binary(min_size=of.size, max_size=of.size)))
    for column in draw(st.permutations(of.columns)):
        content = draw(_content(column.size))
        record[column.offset : column.offset + len(content)] = content
    if of.type is not None and draw(st.integers(0, 9)):
        record[of.type_offset : of.type_offset + 4] = struct.pack("=I", of.type)[: max(0, of.size - of.type_offset)]
    cut = draw(st.sampled_from((0,) * 9 + (1, 50)))
    return bytes(record[: len(record) - cut]) if cut else bytes(record) + draw(st.binary(max_size=9))
