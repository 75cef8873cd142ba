# SPDX-License-Identifier: Apache-2.0
"""Numbers, and names for them that the program's file or its object's BTF has."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ebpftrace.decoders.values import BYTE_ORDER, Place, decimal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ORDER = "<" if BYTE_ORDER == "little" else ">"
_READ = {size: struct.Struct(_ORDER + code).unpack for size, code in ((4, "f"), (8, "d"))}


def boolean(value: bytes | float) -> bool:
    """Is anything of it not zero?"""
    return any(value) if isinstance(value, bytes) else bool(value)


def floating(value: bytes | float) -> float:
    """A float or double as it lies in memory; any other number becomes one."""
    return float(_READ[len(value)](value)[0]) if isinstance(value, bytes) else float(value)


def static_map(mapping: Mapping[int | str, str], *, allow_unknown: bool = False) -> Callable[[int | str], str]:
    """Text for each known value; others say so, or with `allow_unknown` are shown as they are."""
    table = {decimal(key): text for key, text in mapping.items()}
    unknown = "" if allow_unknown else "unknown:"

    def decode(value: int | str) -> str:
        key = decimal(value)
        text = table.get(key)
        return unknown + key if text is None else text

    return decode


def enum(place: Place) -> Callable[[int], str]:
    """The name that the program's C code has for the value."""
    names = dict(place.names or {})
    # BTF says nothing of an enum's sign on older compilers: a negative value may be read as a large one
    top = 1 << (8 * place.size)
    names |= {value + top: name for value, name in names.items() if value < 0}

    def decode(value: int) -> str:
        return names.get(value) or f"unknown:{value}"

    return decode
