# SPDX-License-Identifier: Apache-2.0
"""BTF: the layout of structs, variables and tracepoints, of an object or of the kernel.

Only what the readers of records need: fields with their offsets, sizes and kinds
(Documentation/bpf/btf.rst in the kernel's tree).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from ebpftrace.errors import UnsupportedError
from ebpftrace.kernel._native import ffi, lib, take_log

FieldKind = Literal["unsigned", "signed", "bool", "float", "char", "bytes", "struct", "other"]

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FUNC_PROTO = 8, 9, 10, 11, 13
_DATASEC, _FLOAT, _TYPE_TAG, _ENUM64 = 15, 16, 18, 19
_SIGNED, _CHAR, _BOOL = 1, 2, 4

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
    """

    name: str
    offset: int
    size: int
    kind: FieldKind
    count: int = 0


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

    def _type(self, type_id: int) -> Any:
        return lib.btf__type_by_id(self._btf, type_id)

    def _name(self, offset: int) -> str:
        name: str = ffi.string(lib.btf__name_by_offset(self._btf, offset)).decode()
        return name

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
            return Field(name, offset, size, self._scalar_kind(type_id))
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
        if kind in (_ENUM, _ENUM64, _PTR):
            return "unsigned"
        if kind == _FLOAT:
            return "float"
        return "struct" if kind in (_STRUCT, _UNION) else "other"

    def struct_size(self, name: str) -> int:
        """Return the size in bytes of `struct name`.

        Raises:
            KeyError: there is no such struct.
        """
        return int(lib.btf__resolve_size(self._btf, self._find(name, _STRUCT)))

    def _find(self, name: str, kind: int) -> int:
        type_id = lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
        if type_id < 0:
            raise KeyError(name)
        return int(type_id)

    def fields(self, name: str) -> list[Field]:
        """Return the fields of `struct name` in their order; nested structs are flattened.

        Raises:
            KeyError: there is no such struct.
        """
        return self._fields_of(self._find(name, _STRUCT), "", 0)

    def _fields_of(self, type_id: int, prefix: str, base: int) -> list[Field]:
        info = self._type(type_id)
        members = self._behind(type_id, "btf_member")
        found: list[Field] = []
        for index in range(info.info & 0xFFFF):
            member = members[index]
            offset = base + (member.offset & 0xFFFFFF) // 8  # the high byte is a bit field's width
            name = prefix + self._name(member.name_off)
            inner = self._resolve(member.type)
            if _kind(self._type(inner)) == _STRUCT:
                found += self._fields_of(inner, name + ".", offset)
            else:
                found.append(self._field(name, member.type, offset))
        return found

    def variables(self, section: str) -> dict[str, Field]:
        """Return the variables of a data section (".rodata") by name; empty when there is no such section."""
        type_id = lib.btf__find_by_name_kind(self._btf, section.encode(), _DATASEC)
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
        type_id = lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
        if type_id < 0:
            return set()
        members = self._behind(type_id, structure)
        return {self._name(members[i].name_off) for i in range(self._type(type_id).info & 0xFFFF)}

    def has_tracepoint(self, name: str) -> bool:
        """Has the kernel this BTF tracepoint?"""
        return bool(lib.btf__find_by_name_kind(self._btf, f"btf_trace_{name}".encode(), _TYPEDEF) > 0)

    def tracepoint_arguments(self, name: str) -> int:
        """Return how many arguments a BTF tracepoint passes; 0 when the kernel has no such tracepoint."""
        type_id = lib.btf__find_by_name_kind(self._btf, f"btf_trace_{name}".encode(), _TYPEDEF)
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
