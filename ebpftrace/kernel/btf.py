# SPDX-License-Identifier: Apache-2.0
"""BTF: the layout of structs, variables and tracepoints, of an object or of the kernel.

Only what the readers of records need: fields with their offsets, sizes and kinds
(Documentation/bpf/btf.rst in the kernel's tree).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from ebpftrace.errors import LoadError, UnsupportedError
from ebpftrace.kernel._native import ffi, lib, take_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FieldKind = Literal["unsigned", "signed", "bool", "float", "char", "bytes", "struct", "other"]

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FUNC_PROTO = 8, 9, 10, 11, 13
_DATASEC, _FLOAT, _TYPE_TAG, _ENUM64 = 15, 16, 18, 19
_SIGNED, _CHAR, _BOOL = 1, 2, 4

_PLAIN_KINDS: Mapping[int, FieldKind] = {_PTR: "unsigned", _FLOAT: "float", _STRUCT: "struct", _UNION: "struct"}

_DEEPEST = 32  # structs within structs; only damaged BTF has more

_VMLINUX = Path("/sys/kernel/btf/vmlinux")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a struct.

    Args:
        name: dotted for a field of a nested struct ("span.trace_id").
        offset: bytes from the start of the outermost struct.
        size: bytes, of all elements of an array together.
        kind: of the value, or of an array's elements; "char" is an array of text, "bytes" one of raw bytes.
        count: elements of an array; 0 for a single value.
        bits: of a bit field; 0 = it is none.
        names: of an enum's values; None when it is no enum.
    """

    name: str
    offset: int
    size: int
    kind: FieldKind
    count: int = 0
    bits: int = 0
    names: Mapping[int, str] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A struct or union within a struct.

    Args:
        name: dotted ("span.hdr").
        type: its C name; "" when it has none.
        offset: bytes from the start of the outermost struct.
        size: bytes.
    """

    name: str
    type: str
    offset: int
    size: int


class Btf:
    """Type information of a BPF object, or of the kernel (`Btf.kernel()`)."""

    def __init__(self, pointer: Any, *, owner: object = None) -> None:
        self._btf = pointer
        self._owner = owner  # keeps the object alive whose BTF this is

    @classmethod
    def kernel(cls) -> Self:
        """Return the running kernel's BTF.

        Raises:
            UnsupportedError: the kernel has none (CONFIG_DEBUG_INFO_BTF).
        """
        pointer = lib.btf__load_vmlinux_btf()
        if pointer == ffi.NULL:
            take_log()
            raise UnsupportedError(
                "kernel BTF",
                f"{_VMLINUX} {_vmlinux_problem()}",
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (all current distributions' are)",
            )
        return cls(ffi.gc(pointer, lib.btf__free))

    def __bool__(self) -> bool:
        """Is there any? An object may have been compiled without."""
        return bool(self._btf != ffi.NULL)

    def _id(self, name: str, kind: int) -> int:
        """The id of a type; negative when there is none."""
        return int(lib.btf__find_by_name_kind(self._btf, name.encode(), kind)) if self else -1

    def _type(self, type_id: int) -> Any:
        info = lib.btf__type_by_id(self._btf, type_id)
        if info == ffi.NULL:
            raise LoadError(f"read the BTF, which refers to a type {type_id} that it does not have", errno=errno.EINVAL)
        return info

    def _name(self, offset: int) -> str:
        text = lib.btf__name_by_offset(self._btf, offset)
        return ffi.string(text).decode("utf-8", "replace") if text != ffi.NULL else ""

    def _behind(self, type_id: int, structure: str) -> Any:
        """The array of `structure` that follows a type's head."""
        return ffi.cast(f"struct {structure} *", self._type(type_id) + 1)

    def _resolve(self, type_id: int) -> int:
        """Skip typedefs and qualifiers."""
        while _kind(self._type(type_id)) in (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG):
            type_id = self._type(type_id).size
        return type_id

    def _field(self, name: str, type_id: int, offset: int) -> Field:
        size = lib.btf__resolve_size(self._btf, type_id)
        type_id = self._resolve(type_id)
        if _kind(self._type(type_id)) != _ARRAY:
            return Field(name, offset, size, self._scalar_kind(type_id), names=self._enum_names(type_id))
        array = self._behind(type_id, "btf_array")
        element_id = self._resolve(array.type)
        kind = self._scalar_kind(element_id)
        if kind == "unsigned" and size == array.nelems:
            kind = "bytes"
        return Field(name, offset, size, kind, array.nelems)

    def _scalar_kind(self, type_id: int) -> FieldKind:
        info = self._type(type_id)
        kind = _kind(info)
        if kind == _INT:
            encoding = (int(ffi.cast("uint32_t *", info + 1)[0]) >> 24) & 0xF
            name = self._name(info.name_off)
            if encoding & _CHAR or name == "char":  # clang marks char as signed, not as char
                return "char"
            if encoding & _BOOL:
                return "bool"
            return "signed" if encoding & _SIGNED else "unsigned"
        if kind in (_ENUM, _ENUM64):
            return "signed" if info.info >> 31 else "unsigned"
        return _PLAIN_KINDS.get(kind, "other")

    def struct_size(self, name: str) -> int:
        """Return the size in bytes of `struct name`.

        Raises:
            KeyError: there is no such struct.
        """
        return int(lib.btf__resolve_size(self._btf, self._find(name, _STRUCT)))

    def _find(self, name: str, kind: int) -> int:
        type_id = self._id(name, kind)
        if type_id < 0:
            raise KeyError(name)
        return type_id

    def _enum_names(self, type_id: int) -> dict[int, str] | None:
        """The names of an enum's values; None when it is no enum."""
        info = self._type(type_id)
        kind, count = _kind(info), info.info & 0xFFFF
        if kind == _ENUM:
            values = self._behind(type_id, "btf_enum")
            mask = -1 if info.info >> 31 else 0xFFFFFFFF
            return {int(values[i].val) & mask: self._name(values[i].name_off) for i in range(count)}
        if kind != _ENUM64:
            return None
        words = ffi.cast("uint32_t *", info + 1)  # struct btf_enum64: name, low half, high half
        names = {}
        for i in range(0, count * 3, 3):
            value = int(words[i + 1]) | int(words[i + 2]) << 32
            names[value - (value >> 63 << 64) if info.info >> 31 else value] = self._name(words[i])
        return names

    def fields(self, name: str) -> list[Field]:
        """Return the fields of `struct name` in their order; nested structs and unions are flattened.

        Raises:
            KeyError: there is no such struct.
        """
        return [field for field in self._walk(self._find(name, _STRUCT), "", 0, 0) if isinstance(field, Field)]

    def groups(self, name: str) -> list[Group]:
        """Return the structs and unions within `struct name` that have a name, the outer before the inner.

        Raises:
            KeyError: there is no such struct.
        """
        return [group for group in self._walk(self._find(name, _STRUCT), "", 0, 0) if isinstance(group, Group)]

    def _walk(self, type_id: int, prefix: str, base: int, depth: int) -> Iterator[Field | Group]:
        if depth > _DEEPEST:
            raise LoadError(f"read the BTF, whose structs are nested more than {_DEEPEST} deep", errno=errno.ELOOP)
        info = self._type(type_id)
        members = self._behind(type_id, "btf_member")
        bit_fields = info.info >> 31
        for index in range(info.info & 0xFFFF):
            member = members[index]
            bits = member.offset >> 24 if bit_fields else 0
            offset = base + (member.offset & 0xFFFFFF if bit_fields else member.offset) // 8
            name = self._name(member.name_off)
            inner = self._resolve(member.type)
            if _kind(self._type(inner)) not in (_STRUCT, _UNION):
                field = self._field(prefix + name, member.type, offset)
                yield replace(field, bits=bits) if bits else field
                continue
            if name:  # the members of one without a name are members of what is around it
                yield Group(prefix + name, self._name(self._type(inner).name_off), offset, self._type(inner).size)
            yield from self._walk(inner, f"{prefix}{name}." if name else prefix, offset, depth + 1)

    def structs(self) -> list[str]:
        """Return the names of all structs, in no order that means anything."""
        names, type_id = [], 1
        while self and (info := lib.btf__type_by_id(self._btf, type_id)) != ffi.NULL:
            if _kind(info) == _STRUCT and (name := self._name(info.name_off)):
                names.append(name)
            type_id += 1
        return names

    def variables(self, section: str) -> dict[str, Field]:
        """Return the variables of a data section (".rodata") by name; empty when there is no such section."""
        type_id = self._id(section, _DATASEC)
        if type_id < 0:
            return {}
        entries = self._behind(type_id, "btf_var_secinfo")
        found = {}
        for index in range(self._type(type_id).info & 0xFFFF):
            variable = self._type(entries[index].type)
            name = self._name(variable.name_off)
            found[name] = self._field(name, variable.size, entries[index].offset)
        return found

    def has_enumerator(self, enum: str, name: str) -> bool:
        """Does `enum` have a value of this name? How a helper function's presence shows (enum bpf_func_id)."""
        return name in self._member_names(enum, _ENUM, "btf_enum")

    def has_field(self, struct: str, name: str) -> bool:
        """Has `struct` a member of this name? Anonymous and nested structs are not looked into."""
        return name in self._member_names(struct, _STRUCT, "btf_member")

    def _member_names(self, name: str, kind: int, structure: str) -> set[str]:
        """The names within a type; none when there is no such type."""
        type_id = self._id(name, kind)
        if type_id < 0:
            return set()
        members = self._behind(type_id, structure)
        return {self._name(members[i].name_off) for i in range(self._type(type_id).info & 0xFFFF)}

    def has_tracepoint(self, name: str) -> bool:
        """Has the kernel this BTF tracepoint?"""
        return self._id(f"btf_trace_{name}", _TYPEDEF) > 0

    def tracepoint_arguments(self, name: str) -> int:
        """Return how many arguments a BTF tracepoint passes; 0 when the kernel has no such tracepoint."""
        type_id = self._id(f"btf_trace_{name}", _TYPEDEF)
        if type_id < 0:
            return 0
        pointer = self._type(self._resolve(type_id))
        prototype = self._type(self._resolve(pointer.size))
        if _kind(prototype) != _FUNC_PROTO:
            return 0
        return int(prototype.info & 0xFFFF) - 1  # the first one is the tracepoint's own


def _kind(info: Any) -> int:
    return int(info.info >> 24) & 0x1F


def _vmlinux_problem() -> str:
    """Why libbpf found no BTF: it says ESRCH whatever it was."""
    try:
        with _VMLINUX.open("rb"):
            return "is there, but libbpf cannot read it"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
