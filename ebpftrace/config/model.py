# SPDX-License-Identifier: Apache-2.0
"""What a program's YAML file says.

A superset of the tracing half of cloudflare/ebpf_exporter's format in spirit: here a span names the C struct of its
record, and the struct's BTF in the object gives offsets, sizes and types.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class DecoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step from a field's value to an attribute's.

    Args:
        name: of a decoder in `ebpftrace.decoders`.
        static_map: for the decoder of that name: value → text.
    """

    name: str
    static_map: dict[int | str, str] = {}


class LabelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A field of the record and what becomes of it.

    Args:
        name: the field.
        attribute: the attribute's key; "" when the field has a role instead.
        role: "span_name" (after the span's own name) or "error" (status description).
        omit: a value that means "nothing": no attribute then.
        decoders: applied in this order; none for a number or a NUL-terminated text as it is.
    """

    name: str
    attribute: str = ""
    role: Literal["", "span_name", "error"] = ""
    omit: int | None = None
    decoders: list[DecoderConfig] = []


class SpanConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of record and the span it becomes.

    Args:
        name: the span's name.
        ringbuf: the map it comes through.
        struct: the C struct of the record.
        type: the record's `ebt_hdr.type`.
        hook: where in the kernel it comes from ("tp_btf/sched_switch").
        labels: its attributes.
    """

    name: str
    ringbuf: str
    struct: str
    type: int
    hook: str
    labels: list[LabelConfig] = []


class TracingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part about spans."""

    spans: list[SpanConfig] = []


class ProgramConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A program's file.

    Args:
        description: one line for people.
        tracing: its spans.
    """

    description: str
    tracing: TracingConfig
