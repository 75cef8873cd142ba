# SPDX-License-Identifier: Apache-2.0
"""The frame around encoded spans that makes a request of them, and the little that answers say.

A request is megabytes, and to build it from the inside out would copy the spans at each level: so the lengths are added
up first, and everything is copied once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebpftrace.spans.protobuf import key_value, sized, utf8, varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ebpftrace.spans.model import AttributeValue

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}
_U64 = (1 << 64) - 1


def resource_message(attributes: Mapping[str, AttributeValue]) -> bytes:
    """Encode a Resource."""
    return b"".join(sized(1, key_value(key, value)) for key, value in attributes.items())


def scope_message(name: str, version: str) -> bytes:
    """Encode an InstrumentationScope."""
    return sized(1, utf8(name)) + sized(2, utf8(version))


def request_message(scope: bytes, groups: Iterable[tuple[bytes, Iterable[bytes]]]) -> bytes:
    """Encode an ExportTraceServiceRequest.

    Args:
        scope: the InstrumentationScope of all spans.
        groups: (Resource, payloads) each; a payload is a run of ScopeSpans' `spans` fields.
    """
    scope_field = sized(1, scope)
    parts: list[bytes] = []
    for resource, payloads in groups:
        spans = [scope_field, *payloads]
        resource_field = sized(1, resource)
        scope_spans = varint(2 << 3 | _LENGTH) + varint(sum(map(len, spans)))
        size = len(resource_field) + len(scope_spans) + sum(map(len, spans))
        parts += [varint(1 << 3 | _LENGTH) + varint(size), resource_field, scope_spans, *spans]
    return b"".join(parts)  # the one copy of the payloads


def partial_success(response: bytes) -> tuple[int, str]:
    """Read an ExportTraceServiceResponse: how many spans were rejected, and what the server remarks.

    Raises:
        ValueError: it is none.
    """
    rejected, text = 0, ""
    for tag, value in _fields(response):
        if tag == 1 and isinstance(value, bytes):
            for inner, content in _fields(value):
                if inner == 1 and isinstance(content, int):
                    rejected = 0 if content >> 63 else content
                elif inner == 2 and isinstance(content, bytes):
                    text = content.decode(errors="replace")
    return rejected, text


def status_text(status: bytes) -> str:
    """Read the message of a google.rpc.Status.

    Raises:
        ValueError: it is none.
    """
    for tag, value in _fields(status):
        if tag == 2 and isinstance(value, bytes):
            return value.decode(errors="replace")
    return ""


def retry_delay_s(status: bytes) -> float | None:
    """Read the RetryInfo in the details of a google.rpc.Status, in seconds; None when there is none.

    Raises:
        ValueError: it is no Status.
    """
    for tag, detail in _fields(status):
        if tag != 3 or not isinstance(detail, bytes):
            continue
        parts = dict(_fields(detail))
        kind, content = parts.get(1), parts.get(2, b"")
        if isinstance(kind, bytes) and kind.endswith(b"/google.rpc.RetryInfo") and isinstance(content, bytes):
            duration = dict(_fields(content)).get(1, b"")
            numbers = dict(_fields(duration)) if isinstance(duration, bytes) else {}
            seconds, nanos = numbers.get(1, 0), numbers.get(2, 0)
            if isinstance(seconds, int) and isinstance(nanos, int) and not (seconds | nanos) >> 63:
                return seconds + nanos / 1e9
    return None


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        kind = key & 7
        if kind == _VARINT:
            number, place = _read_varint(message, place)
            yield key >> 3, number
            continue
        if kind == _LENGTH:
            size, place = _read_varint(message, place)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise ValueError(f"wire type {kind} at byte {place}")
        if place + size > len(message):
            raise ValueError(f"a field ends behind the message, at byte {place + size} of {len(message)}")
        yield key >> 3, message[place : place + size]
        place += size


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while place < len(message) and shift < 70:
        byte = message[place]
        number |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return number & _U64, place
        shift += 7
    raise ValueError(f"a number without end at byte {place}")
