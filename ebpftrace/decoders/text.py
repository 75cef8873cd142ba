# SPDX-License-Identifier: Apache-2.0
"""Text: out of bytes, and what of it matches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebpftrace.decoders.patterns import compile_pattern
from ebpftrace.decoders.values import SkipRecord, decimal
from ebpftrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def string(value: bytes | int | str) -> str | None:
    """A C string: up to the first NUL; bytes that are not UTF-8 are replaced, an empty one is nothing."""
    return plain(value) or None


def plain(value: bytes | int | str) -> str:
    """A C string that may be empty, for decoders that follow; of a number, its decimal text."""
    return value.partition(b"\0")[0].decode("utf-8", "replace") if isinstance(value, bytes) else decimal(value)


def regexp(patterns: Sequence[str]) -> Callable[[bytes | int | str], str]:
    """The part of a text that the first matching pattern finds; a text without any makes the record be skipped.

    The part is the pattern's group, or the whole match of a pattern without groups. Of several groups, those that took
    part are joined by a space.

    Raises:
        ConfigError: a pattern is none, or uses what this does not have.
    """
    problems, compiled = [], []
    for pattern in patterns:
        try:
            compiled.append(compile_pattern(pattern))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))

    def decode(value: bytes | int | str) -> str:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else decimal(value)
        for pattern in compiled:
            match = pattern.search(text)
            if match is not None:
                return " ".join(group for group in match.groups() if group) if pattern.groups else match[0]
        raise SkipRecord

    return decode
