# SPDX-License-Identifier: Apache-2.0
"""The head of a record: ids, start and duration, which every record begins with.

The tables are the C structs of bpf/include/ebpftrace_abi.h and of ebpf_exporter's examples; a record's own BTF is
checked against the first by the tests of the layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ebpftrace.config.layout import FieldKind
    from ebpftrace.config.model import Role

TYPE_OFFSET = 8
"""Of `type` in `struct ebt_hdr`, which `struct ebt_span` begins with."""

HEAD_STRUCT = "ebt_span"


class HeadField(NamedTuple):
    """One field of a head: its role, its place and how its bytes are read."""

    role: Role
    offset: int
    size: int
    kind: FieldKind


class Head(NamedTuple):
    """A head: its fields, and the bytes it takes."""

    fields: tuple[HeadField, ...]
    size: int


HEADS: Mapping[str, Head] = {
    "": Head((), 0),
    "ebpftrace": Head(
        (
            HeadField("start", 0, 8, "unsigned"),
            HeadField("trace_id", 16, 16, "raw"),
            HeadField("parent_span_id", 32, 8, "raw"),
            HeadField("span_id", 40, 8, "raw"),
            HeadField("duration", 48, 8, "unsigned"),
        ),
        56,
    ),
    "ebpf_exporter": Head(
        (
            HeadField("trace_id", 0, 16, "raw"),
            HeadField("parent_span_id", 16, 8, "raw"),
            HeadField("span_id", 24, 8, "raw"),
            HeadField("start", 32, 8, "unsigned"),
            HeadField("duration", 40, 8, "unsigned"),
        ),
        48,
    ),
}

HEAD_ROLES: frozenset[Role] = frozenset(field.role for field in HEADS["ebpftrace"].fields)
