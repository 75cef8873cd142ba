# SPDX-License-Identifier: Apache-2.0
"""A record's C struct as the object's BTF has it, and whether labels with sizes agree with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ebpftrace.config.heads import HEAD_STRUCT, HeadField

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ebpftrace.config.layout import FieldKind
    from ebpftrace.config.model import Role
    from ebpftrace.kernel.btf import Field, Group

_NUMBERS = ("unsigned", "signed")
_NUMBER_SIZES = (1, 2, 4, 8)
_FLOAT_SIZES = (4, 8)
_PADDING = ("pad", "_pad", "__pad")
_OWN_HEAD: tuple[tuple[Role, str], ...] = (
    ("start", "hdr.ts_ns"),
    ("trace_id", "trace_id"),
    ("parent_span_id", "parent_span_id"),
    ("span_id", "span_id"),
    ("duration", "duration_ns"),
)
"""The fields of `struct ebt_span`."""
_EXPORTER_HEAD: tuple[tuple[Role, str], ...] = (
    ("parent_span_id", "parent.span_id"),
    ("span_id", "span_id"),
    ("start", "span_monotonic_timestamp_ns"),
    ("duration", "span_duration_ns"),
)
"""The fields of ebpf_exporter's `struct span_base_t` after the two halves of the trace id."""


class Types(Protocol):
    """Who knows structs: an object's BTF, or whatever else describes records."""

    def __bool__(self) -> bool:
        """Is anything known?"""

    def structs(self) -> list[str]:
        """Return the names of all structs."""

    def struct_size(self, name: str) -> int:
        """Return the size in bytes of a struct; KeyError when there is none."""

    def fields(self, name: str) -> list[Field]:
        """Return the fields of a struct, nested ones flattened; KeyError when there is none."""

    def groups(self, name: str) -> list[Group]:
        """Return the structs within a struct; KeyError when there is none."""


class Place(NamedTuple):
    """A label with a size, where the labels before it put it."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class FoundHead:
    """The head of a struct.

    Args:
        fields: what of it makes a span.
        hidden: the names of its members, which are no attributes.
        has_type: it has `type`, which tells records of one ring buffer apart.
        size: bytes up to its end.
    """

    fields: tuple[HeadField, ...]
    hidden: frozenset[str]
    has_type: bool
    size: int


class RecordStruct:
    """One struct of an object's BTF.

    Args:
        btf: of the object, or what stands in for it.
        name: of the struct.

    Raises:
        KeyError: there is no such struct.
    """

    def __init__(self, btf: Types, name: str) -> None:
        self.name = name
        self.size = btf.struct_size(name)
        self.fields = btf.fields(name)
        self.groups = btf.groups(name)
        self.head = _find_head(self.fields, self.groups)

    def member(self, name: str) -> Field | Group | None:
        """Return a field, or a struct within this one, by its dotted name."""
        members: list[Field | Group] = [*self.fields, *self.groups]
        return next((member for member in members if member.name == name), None)

    def names(self) -> list[str]:
        """Return what a label may be called: all but the head and padding."""
        return [field.name for field in self.attributes()]

    def attributes(self) -> list[Field]:
        """Return the fields that are neither head nor padding; of a union, the first that covers its bytes."""
        hidden = self.head.hidden if self.head else frozenset()
        found: list[Field] = []
        end = 0
        for field in self.fields:
            padding = field.name.rpartition(".")[2].startswith(_PADDING)
            if field.name not in hidden and not padding and (field.offset >= end or field.bits):
                found.append(field)
                end = field.offset + field.size
        return found

    def disagreement(self, place: Place) -> str:
        """Return why a label cannot be where it is put; "" when it begins and ends where fields do."""
        begin, end = place.offset, place.offset + place.size
        if end > self.size:
            return f"it ends at byte {end}, after the struct's end at byte {self.size}"
        begins = {field.offset for field in self.fields}
        if begin not in begins:
            return f"it begins at byte {begin}, where {self._at(begin)}"
        last = max((field for field in self.fields if field.offset < end), key=lambda field: field.offset + field.size)
        if end < last.offset + last.size:
            return f"it ends at byte {end}, where {self._at(end)}"
        return ""

    def _at(self, offset: int) -> str:
        """What is at an offset where no field begins."""
        for field in self.fields:
            if field.offset <= offset < field.offset + field.size:
                return f"{field.name!r} is, {field.size} bytes from byte {field.offset} on"
        return "padding is"

    def only_field(self, place: Place) -> Field | None:
        """Return the field that a label covers, when it is a single one; the rest of the label is padding then."""
        inside = [field for field in self.fields if place.offset <= field.offset < place.offset + place.size]
        return inside[0] if len(inside) == 1 and inside[0].offset == place.offset else None


def kind_of(field: Field | Group) -> FieldKind:
    """Return how a field's bytes are read."""
    kind = getattr(field, "kind", "struct")  # a group has none
    if kind == "char":
        return "char"
    if getattr(field, "count", 0):
        return "raw"
    if kind in _NUMBERS and field.size in _NUMBER_SIZES:
        return "signed" if kind == "signed" else "unsigned"
    if kind == "float" and field.size in _FLOAT_SIZES:
        return "float"
    return "bool" if kind == "bool" else "raw"


def _find_head(fields: Sequence[Field], groups: Sequence[Group]) -> FoundHead | None:
    for group in groups:
        if group.type == HEAD_STRUCT and group.offset == 0:
            return _own_head(fields, group)
    for prefix in ("", *(f"{group.name}." for group in groups)):
        if head := _exporter_head(fields, prefix):
            return head
    return None


def _own_head(fields: Sequence[Field], group: Group) -> FoundHead | None:
    by_name = {field.name: field for field in fields}
    try:
        found = tuple(_head_field(role, by_name[f"{group.name}.{name}"]) for role, name in _OWN_HEAD)
    except KeyError:  # another struct of that name
        return None
    hidden = frozenset(field.name for field in fields if field.name.startswith(f"{group.name}."))
    return FoundHead(found, hidden, has_type=True, size=group.offset + group.size)


def _exporter_head(fields: Sequence[Field], prefix: str) -> FoundHead | None:
    """The head of ebpf_exporter's examples, by the names of its members; ids are in the order of memory there too."""
    by_name = {field.name: field for field in fields}
    try:
        high, low = by_name[f"{prefix}parent.trace_id_hi"], by_name[f"{prefix}parent.trace_id_lo"]
        rest = tuple(_head_field(role, by_name[prefix + name]) for role, name in _EXPORTER_HEAD)
    except KeyError:
        return None
    if low.offset != high.offset + high.size:
        return None
    found = (HeadField("trace_id", high.offset, high.size + low.size, "raw"), *rest)
    names = ("parent.trace_id_hi", "parent.trace_id_lo", *(name for _, name in _EXPORTER_HEAD))
    hidden = frozenset(prefix + name for name in names)
    return FoundHead(found, hidden, has_type=False, size=rest[-1].offset + rest[-1].size)


def _head_field(role: Role, field: Field) -> HeadField:
    return HeadField(role, field.offset, field.size, "raw" if role.endswith("_id") else "unsigned")
