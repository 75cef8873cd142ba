# SPDX-License-Identifier: Apache-2.0
"""Where the fields of a record lie and what becomes of them: a program's file and its object's BTF put together.

This is all that the makers of spans know of a record; they see neither YAML nor BTF.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ebpftrace.config.model import DecoderConfig, Role

FieldKind = Literal["raw", "unsigned", "signed", "bool", "float", "char"]
"""How a field's bytes are read: "char" is an array of text, "raw" bytes that are not (and every field of the label
form, where only decoders know)."""


@dataclass(frozen=True, slots=True)
class Column:
    """One label, placed.

    Args:
        name: the label.
        role: "" for an attribute.
        key: the attribute's key, or the event's name.
        offset: bytes from the start of the record.
        size: bytes.
        kind: how to read them.
        omit: a value, before decoding, that means "nothing".
        decoders: what to do to it, in this order.
        names: of an enum's values, from BTF: what a value becomes without decoders.
    """

    name: str
    role: Role
    key: str
    offset: int
    size: int
    kind: FieldKind
    omit: int | str | None = None
    decoders: tuple[DecoderConfig, ...] = ()
    names: Mapping[int, str] | None = None


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """One kind of record.

    Args:
        program: name of the program.
        where: what errors call it ("sched-trace.yaml: span 'off_cpu'").
        name: the span's name unless a column with that role has one.
        ringbuf: the map it comes through.
        service: `service.name`; "" = the sink's own.
        kind: the span's kind; "" = internal.
        type: the u32 at `type_offset` that tells these records from others of the ring buffer; None = all are these.
        type_offset: of that u32 in the record.
        size: bytes that a record has at least; more are ignored.
        columns: in the order of the file, the head's first.
        attributes: that every span of this kind has (`ebpftrace.program`, `ebpftrace.hook`).
    """

    program: str
    where: str
    name: str
    ringbuf: str
    service: str
    kind: str
    type: int | None
    type_offset: int
    size: int
    columns: tuple[Column, ...]
    attributes: Mapping[str, str]
