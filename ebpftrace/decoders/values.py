# SPDX-License-Identifier: Apache-2.0
"""What decoders are made of: the types of values, the entry of a decoder in the catalogue, the one exception."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ebpftrace.config.layout import FieldKind
    from ebpftrace.config.model import DecoderConfig

BYTE_ORDER: Literal["little", "big"] = "little" if sys.byteorder == "little" else "big"
"""Of the records: the kernel's, which is this process's."""

Decoder = Callable[[Any], Any]
"""A value in, a value out; None = there is nothing to say."""

Type = Literal["bytes", "int", "float", "bool", "text", "texts"]
"""Of a value within a chain; "bytes" only at its start, "texts" (several) only at its end."""

Native = Literal["", "uint", "sint", "bool", "float", "cstring", "hex"]


class SkipRecord(Exception):  # noqa: N818 - not an error: the file asked for it
    """The record makes no span: a decoder that filters did not match."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a decoder may know of the place where it is used.

    Args:
        config: its entry in the program's file.
        kind: of the field that the chain starts with.
        size: of that field, in bytes.
        names: of an enum's values, from BTF; None where the field is no enum.
    """

    config: DecoderConfig
    kind: FieldKind = "unsigned"
    size: int = 8
    names: Mapping[int, str] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One decoder in the catalogue.

    Args:
        name: as files write it.
        takes: the types of values that it can start from.
        gives: the type that it makes.
        summary: one line for people.
        build: makes the function for one place.
        sizes: bytes that a field may have, when it starts from bytes; none = any number.
        multiple: that size is a multiple of this.
        least: that size is at least this.
        keys: of a file's decoder entry that it takes beside `name`; it needs the first one.
        number: its function takes a number, and bytes are read as an unsigned one first.
        packs: it starts from a typed number's bytes as well, as they lie in memory.
        lasting: what it says of a value today, it says tomorrow.
        native: what it is for C when it is the whole chain and starts from bytes.
        capability: that it needs to answer at all ("CAP_SYSLOG").
        reads: files and directories that it looks things up in.
        prepare: what to do once before capabilities are dropped; None = nothing.
    """

    name: str
    takes: tuple[Type, ...]
    gives: Type
    summary: str
    build: Callable[[Place], Decoder]
    sizes: tuple[int, ...] = ()
    multiple: int = 1
    least: int = 1
    keys: tuple[str, ...] = ()
    number: bool = False
    packs: bool = False
    lasting: bool = True
    native: Native = ""
    capability: str = ""
    reads: tuple[str, ...] = ()
    prepare: Callable[[], None] | None = None


def always(decode: Decoder) -> Callable[[Place], Decoder]:
    """Return the `build` of a decoder that is the same function everywhere."""
    return lambda _place: decode


def unsigned(value: bytes) -> int:
    """Return the number that the bytes are in memory."""
    return int.from_bytes(value, BYTE_ORDER)


def signed(value: bytes) -> int:
    """Return the two's complement number that the bytes are in memory."""
    return int.from_bytes(value, BYTE_ORDER, signed=True)


def decimal(value: float | str) -> str:
    """Return the text that a value of any kind is compared by."""
    return value if isinstance(value, str) else str(int(value))


def number(value: int | str) -> int | None:
    """Return the number that a value is or, as decimal text, stands for; None where it is neither."""
    if not isinstance(value, str):
        return int(value)
    digits = value.removeprefix("-")
    # no more digits than 64 bits have: int() of thousands of them is slow, or refused
    return int(value) if len(digits) <= 20 and digits.isascii() and digits.isdigit() else None
