# SPDX-License-Identifier: Apache-2.0
"""OTLP's protobuf encoding, as much of it as spans need, without a protobuf library.

Messages and field numbers are those of opentelemetry-proto 1.x (trace.proto, common.proto, resource.proto). `_otlp`
writes the same bytes for records that it can read by itself; here is what it cannot, and what is made of spans.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ebpftrace.spans.model import KernelSpan

PROGRAM = "ebpftrace.program"
"""The attribute that every kernel span has."""

KINDS = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}
"""Span.SpanKind; 0 is "unspecified"."""
STATUSES = {"unset": 0, "ok": 1, "error": 2}
"""Status.StatusCode."""

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
UINT64_MAX = (1 << 64) - 1

# SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK, and not remote: what the SDK's exporter says of a local parent
_FLAGS = struct.pack("<I", 0x100)
_SPAN_END = b"\x85\x01" + _FLAGS  # Span.flags = 16
_double = struct.Struct("<d").pack
_fixed64 = struct.Struct("<Q").pack


def varint(number: int) -> bytes:
    """Encode a number from 0 to 2^64 - 1."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def sized(tag: int, payload: bytes) -> bytes:
    """Encode a field that has a length: text, bytes, a message."""
    return bytes((tag << 3 | 2,)) + varint(len(payload)) + payload


def utf8(text: str) -> bytes:
    """Encode text; a lone surrogate becomes "?", for receivers refuse a whole request over it."""
    return text.encode("utf-8", "replace")


def any_value(value: Any) -> bytes:  # noqa: PLR0911  (one return a type)
    """Encode an AnyValue: an integer beyond int64 as its decimal digits, what OTLP has no type for as its text."""
    if isinstance(value, str):
        return sized(1, utf8(value))
    if isinstance(value, bool):  # before int, which it is
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        if INT64_MIN <= value <= INT64_MAX:
            return b"\x18" + varint(value & UINT64_MAX)
        return sized(1, b"%d" % value)
    if isinstance(value, float):
        return b"\x21" + _double(value)
    if isinstance(value, (tuple, list)):
        return sized(5, b"".join(sized(1, any_value(item)) for item in value))
    if isinstance(value, (bytes, bytearray)):
        return sized(7, bytes(value))
    return b"" if value is None else sized(1, utf8(str(value)))


def key_value(key: str, value: Any) -> bytes:
    """Encode a KeyValue."""
    return sized(1, utf8(key)) + sized(2, any_value(value))


def attribute(key: str, value: Any) -> bytes:
    """Encode one of Span.attributes."""
    return sized(9, key_value(key, value))


def encode_spans(spans: Sequence[KernelSpan]) -> bytes:
    """Encode spans one after the other as the field ScopeSpans.spans, so that payloads can be joined.

    A span's service is its resource's and not in here; ids and times are taken as they are.
    """
    return b"".join([sized(2, _span(span)) for span in spans])


def _span(span: KernelSpan) -> bytes:
    parts = [b"\x0a\x10", span.trace_id.to_bytes(16, "big"), b"\x12\x08", span.span_id.to_bytes(8, "big")]
    if span.parent_span_id:
        parts += [b"\x22\x08", span.parent_span_id.to_bytes(8, "big")]
    if span.name:
        parts.append(sized(5, utf8(span.name)))
    parts += [b"\x30", varint(KINDS[span.kind]), b"\x39", _fixed64(span.start_ns), b"\x41", _fixed64(span.end_ns)]
    parts += [attribute(key, value) for key, value in span.attributes.items()]
    if PROGRAM not in span.attributes:
        parts.append(attribute(PROGRAM, span.program))
    parts += [sized(11, b"\x09" + _fixed64(time_ns) + sized(2, utf8(name))) for name, time_ns in span.events]
    parts += [_link(trace_id, span_id) for trace_id, span_id in span.links]
    parts += [sized(15, _status(span)), _SPAN_END]
    return b"".join(parts)


def _link(trace_id: int, span_id: int) -> bytes:
    ids = sized(1, trace_id.to_bytes(16, "big")) + sized(2, span_id.to_bytes(8, "big"))
    return sized(13, ids + b"\x35" + _FLAGS)


def _status(span: KernelSpan) -> bytes:
    # written even when empty: the SDK's exporter does so
    if span.error is not None:
        return (sized(2, utf8(span.error)) if span.error else b"") + b"\x18\x02"
    code = STATUSES[span.status]
    return b"\x18" + varint(code) if code else b""
