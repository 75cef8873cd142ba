# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a program's file: collected, with the line and a way to mend each, and told all at once."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebpftrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_MOST_NAMES = 12
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, or worth a warning.

    Args:
        source: the file.
        line: in it, from 1; 0 = not known.
        key: where in the document ("tracing.spans[0].labels[3].size"); "" = the document.
        what: what is wrong.
        mend: what to do about it.
    """

    source: str
    line: int
    key: str
    what: str
    mend: str

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}" if self.line else self.source
        return ": ".join(filter(None, (place, self.key, self.what, self.mend)))


class ConfigProblems(ConfigError):  # noqa: N818 - it is several
    """A file with problems; the message has a line for each.

    Args:
        problems: all of them, at least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))


class Problems:
    """Collects what is wrong with one file: one problem a key, so that a mistake is not told twice.

    Args:
        source: the file.
        lines: of its keys.
    """

    def __init__(self, source: str, lines: Mapping[str, int]) -> None:
        self.source = source
        self.lines = lines
        self.found: list[Problem] = []
        self.warnings: list[Problem] = []

    def add(self, key: str, what: str, mend: str, *, line: int = 0) -> None:
        """Note a problem; nothing when the key, or what it is part of, has one already."""
        if not self.has(key):
            self.found.append(Problem(self.source, line or self._line(key), key, what, mend))

    def warn(self, key: str, what: str, mend: str) -> None:
        """Note what does not keep the file from being used."""
        self.warnings.append(Problem(self.source, self._line(key), key, what, mend))

    def has(self, key: str) -> bool:
        """Has this key, or something it is part of, a problem?"""
        return any(_contains(problem.key, key) for problem in self.found)

    def has_below(self, key: str) -> bool:
        """Has this key, something it is part of, or something in it, a problem?"""
        return any(_contains(problem.key, key) or _contains(key, problem.key) for problem in self.found)

    def _line(self, key: str) -> int:
        """The line of a key, or of the innermost thing around it that is there."""
        while key not in self.lines and key:
            key = _parent(key)
        return self.lines.get(key, 0)

    def sorted(self) -> list[Problem]:
        """Return the problems in the order of the file."""
        return sorted(self.found, key=lambda problem: (problem.line, _NUMBER.sub(_padded, problem.key)))


def _parent(key: str) -> str:
    return key[: max(key.rfind("."), key.rfind("["), 0)]


def _padded(number: re.Match[str]) -> str:
    """A number that sorts as text: labels[10] comes after labels[9]."""
    return number[0].zfill(6)


def _contains(outer: str, inner: str) -> bool:
    if not outer:  # the whole document
        return True
    return inner == outer or inner.startswith((outer + ".", outer + "["))


def suggest(wrong: str, known: Iterable[str], what: str) -> str:
    """Return the mend for a name that is not known: a name like it, or the names there are.

    Args:
        wrong: what was written.
        known: what could have been.
        what: what these are called ("the keys here").
    """
    names = sorted(known)
    if close := difflib.get_close_matches(wrong, names, 1):
        return f"did you mean {close[0]!r}?"
    if not names:
        return f"{what}: none"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{what}: {', '.join(names[:_MOST_NAMES])}{more}"
