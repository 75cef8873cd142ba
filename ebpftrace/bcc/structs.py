# SPDX-License-Identifier: Apache-2.0
"""Records described by ctypes structures, in place of an object's BTF."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ebpftrace.config.heads import HEAD_STRUCT
from ebpftrace.errors import ConfigError
from ebpftrace.kernel.btf import Field, Group

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ebpftrace.kernel.btf import FieldKind

Record = type[ctypes.Structure]

_KINDS: Mapping[str, FieldKind] = {
    "?": "bool",
    "c": "char",
    **dict.fromkeys("bhilq", "signed"),
    **dict.fromkeys("BHILQPzZ", "unsigned"),
    **dict.fromkeys("fd", "float"),
}
"""What `_type_` of ctypes' simple types says; pointers are numbers here."""


class SpanHead(ctypes.Structure):
    """`struct ebt_span` of our header: put it first in the structure of a record that begins with it.

    Ids are in W3C byte order, times are nanoseconds of CLOCK_MONOTONIC.
    """

    _fields_ = (
        ("ts_ns", ctypes.c_uint64),
        ("type", ctypes.c_uint32),
        ("len", ctypes.c_uint32),
        ("trace_id", ctypes.c_ubyte * 16),
        ("parent_span_id", ctypes.c_ubyte * 8),
        ("span_id", ctypes.c_ubyte * 8),
        ("duration_ns", ctypes.c_uint64),
    )


class CtypesTypes:
    """Structures by name, with the interface that `ebpftrace.config` has for BTF.

    Args:
        structs: by the name that a file calls them.

    Raises:
        ConfigError: one of them has a field that no record can be read by: it says which.
    """

    def __init__(self, structs: Mapping[str, Record]) -> None:
        self._sizes = {name: ctypes.sizeof(struct) for name, struct in structs.items()}
        self._members = {name: list(_walk(struct, name, "", 0)) for name, struct in structs.items()}

    def __bool__(self) -> bool:
        return bool(self._sizes)

    def structs(self) -> list[str]:
        """Return their names."""
        return list(self._sizes)

    def struct_size(self, name: str) -> int:
        """Return a structure's size in bytes; KeyError when there is none of that name."""
        return self._sizes[name]

    def fields(self, name: str) -> list[Field]:
        """Return a structure's fields, those of structures within it by dotted names."""
        return [member for member in self._members[name] if isinstance(member, Field)]

    def groups(self, name: str) -> list[Group]:
        """Return the structures within a structure, the outer before the inner."""
        return [member for member in self._members[name] if isinstance(member, Group)]


def is_record(value: object) -> bool:
    """Is this a structure that a record can be?"""
    return isinstance(value, type) and issubclass(value, ctypes.Structure)


def _walk(struct: Any, where: str, prefix: str, base: int) -> Iterator[Field | Group]:
    """The members of a structure or union, in their order, with those of the ones within it."""
    anonymous = getattr(struct, "_anonymous_", ())
    for name, kind, *bits in _declared(struct):
        offset = base + getattr(struct, name).offset
        dotted = prefix + name
        if _is_group(kind):
            inner = prefix if name in anonymous else f"{dotted}."
            if name not in anonymous:
                yield Group(dotted, _c_name(kind), offset, ctypes.sizeof(kind))
            yield from _members_of_head(dotted, offset) if kind is SpanHead else _walk(kind, where, inner, offset)
        else:
            yield _field(kind, where, dotted, offset, *bits)


def _declared(struct: Any) -> Sequence[tuple[Any, ...]]:
    """The fields of a structure and of those that it is derived from, the base's first."""
    return [row for base in reversed(struct.__mro__) for row in base.__dict__.get("_fields_", ())]


def _members_of_head(prefix: str, base: int) -> Iterator[Field | Group]:
    """Those of `SpanHead`, as C has them: the first three are a struct of their own."""
    yield Group(f"{prefix}.hdr", "ebt_hdr", base, SpanHead.trace_id.offset)
    for field in _walk(SpanHead, HEAD_STRUCT, "", base):
        assert isinstance(field, Field)  # noqa: S101  (it has no structures)
        inner = "hdr." if field.offset - base < SpanHead.trace_id.offset else ""
        yield replace(field, name=f"{prefix}.{inner}{field.name}")


def _is_group(kind: Any) -> bool:
    return issubclass(kind, ctypes.Structure | ctypes.Union)


def _c_name(kind: Any) -> str:
    return HEAD_STRUCT if kind is SpanHead else str(kind.__name__)


def _field(kind: Any, where: str, name: str, offset: int, bits: int = 0) -> Field:
    size, count = ctypes.sizeof(kind), 0
    element = kind
    if issubclass(kind, ctypes.Array):
        while issubclass(element, ctypes.Array):
            element = element._type_
        count = size // (ctypes.sizeof(element) or 1)
    _refuse_swapped(element, where, name)
    what: FieldKind = "struct" if _is_group(element) else _kind_of(element)
    if count and what == "unsigned" and size == count:
        what = "bytes"
    return Field(name, offset, size, what, count, bits)


def _kind_of(element: Any) -> FieldKind:
    code = getattr(element, "_type_", "")
    if isinstance(code, str):
        return _KINDS.get(code, "unsigned" if issubclass(element, ctypes._Pointer) else "other")
    return "unsigned"  # a pointer, whose _type_ is what it points to


def _refuse_swapped(element: Any, where: str, name: str) -> None:
    """A number in the other byte order would be read wrong."""
    if getattr(element, "__ctype_be__", element) is element and getattr(element, "__ctype_le__", element) is element:
        return
    native = element.__ctype_le__ if sys.byteorder == "little" else element.__ctype_be__
    if native is not element:
        raise ConfigError(
            f"struct {where}: {name!r} is a number in the other byte order: "
            f"declare it as c_ubyte * {ctypes.sizeof(element)}, and give it a decoder such as inet_ip"
        )
