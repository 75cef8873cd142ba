# SPDX-License-Identifier: Apache-2.0
"""Layouts as `_otlp.Encoder.set_ring` takes them, and the answers that it asks for."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from ebpftrace.decoders import SkipRecord
from ebpftrace.spans import _otlp
from ebpftrace.spans.columns import ID_BYTES, TIMES, Reading, readings
from ebpftrace.spans.protobuf import KINDS, PROGRAM, STATUSES, attribute, sized, utf8

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ebpftrace.config.layout import RecordLayout

Answer = bytes | int | None
"""Encoded; `_otlp.SKIPPED` or `_otlp.FAILED`; or nothing."""

_u64 = struct.Struct("=Q").pack


def native_layout(layout: RecordLayout, log: Callable[[Exception], None]) -> _otlp.Layout:
    """Describe a layout.

    Args:
        layout: of a record.
        log: told of each value that cannot be decoded; the encoder counts it.

    Raises:
        ConfigError: decoders do not fit their columns.
    """
    columns = readings(layout)
    base = {PROGRAM: layout.program, **layout.attributes}
    shared = _shared_keys([reading.column.key for reading in columns if reading.column.role == ""], base)
    return (
        layout.type,
        layout.type_offset,
        layout.size,
        layout.program,
        utf8(layout.name),
        utf8(layout.service),
        KINDS[layout.kind or "internal"],
        b"".join(attribute(key, value) for key, value in base.items() if key not in shared),
        tuple((shared[key], attribute(key, value)) for key, value in base.items() if key in shared),
        tuple(_column(reading, shared, log) for reading in columns),
    )


def _shared_keys(keys: Sequence[str], base: dict[str, Any]) -> dict[str, int]:
    """Number the keys that more than one attribute has: the encoder writes the first that is there."""
    shared = [key for key in dict.fromkeys(keys) if keys.count(key) > 1 or key in base]
    return {key: number for number, key in enumerate(shared)}


def _column(reading: Reading, shared: dict[str, int], log: Callable[[Exception], None]) -> _otlp.Column:
    column = reading.column
    prefix, key = b"", -1
    if column.role == "":
        prefix, key = sized(1, utf8(column.key)) + b"\x12", shared.get(column.key, -1)
    elif column.role == "event":
        prefix = sized(2, utf8(column.key))
    convert = _asker(reading, log) if reading.op == "call" else None
    place = (column.offset, column.size)
    return (column.role, reading.op, *place, prefix, reading.omit, key, reading.lasting, convert)


def _asker(reading: Reading, log: Callable[[Exception], None]) -> Callable[[bytes], Answer]:
    encode = _encoder(reading)

    def ask(data: bytes) -> Answer:
        try:
            value = reading.of_bytes(data)
            return None if value is None else encode(value)
        except SkipRecord:
            return _otlp.SKIPPED
        except Exception as error:  # noqa: BLE001  (whatever it is, other records have nothing to do with it)
            log(error)
            return _otlp.FAILED

    return ask


def _encoder(reading: Reading) -> Callable[[Any], bytes]:
    """How the encoder takes a value of this role."""
    role, key = reading.column.role, reading.column.key
    if role == "":
        return lambda value: attribute(key, value)
    if role in ID_BYTES:
        return lambda value: value.to_bytes(ID_BYTES[role], "big")
    if role in TIMES:
        return _u64
    if role == "kind":
        return lambda value: bytes((KINDS[value],))
    if role == "status":
        return lambda value: bytes((STATUSES[value],))
    return utf8
