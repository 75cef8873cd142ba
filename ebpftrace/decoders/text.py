# SPDX-License-Identifier: Apache-2.0
"""Text out of bytes, and text out of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def string(value: bytes) -> str | None:
    """A C string: up to the first NUL; bytes that are not UTF-8 are replaced, an empty one is nothing."""
    return value.partition(b"\0")[0].decode("utf-8", "replace") or None


def static_map(mapping: Mapping[int | str, str]) -> Callable[[int | str], str]:
    """Text for each known value; others say so."""
    table = dict(mapping)

    def decode(value: int | str) -> str:
        return table.get(value) or f"unknown:{value}"

    return decode
