# SPDX-License-Identifier: Apache-2.0
r"""Regular expressions as programs' files write them: RE2's syntax, run by Python's `re`.

What RE2 writes differently is translated (`\z`, `\Q…\E`, `\x{…}`, `(?<name>…)`, `[[:alpha:]]`), and `$` is the end of
the text and nothing else. Classes like `\d` are ASCII, as there. What `re` does not have (`\pL`, `(?U)`, flags in the
middle) is an error. Unlike RE2, `re` may take exponential time for a pattern with nested repetitions (`(a+)+b`).
"""

from __future__ import annotations

import re
import warnings

from ebpftrace.errors import ConfigError

_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_CODE_POINT = re.compile(r"\\x\{([0-9A-Fa-f]{1,8})\}")
_POSIX_CLASS = re.compile(r"\[:(\^?\w+):\]")
_FLAGS = re.compile(r"\(\?([a-zA-Z]+)\)")
_NAMED = re.compile(r"\(\?<(?=[A-Za-z_])")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return `pattern`, compiled.

    Raises:
        ConfigError: it is no regular expression, or uses what this does not have.
    """
    try:
        with warnings.catch_warnings():  # of what a doubled "-" in a class may mean one day
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(_translate(pattern), re.ASCII)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        reason = error.msg if isinstance(error, re.error) else error
        raise ConfigError(f"the regexp {pattern!r} cannot be used: {reason}") from None


def _translate(pattern: str) -> str:
    """`pattern` in the syntax of `re`."""
    flags = _FLAGS.match(pattern)
    end = "$" if flags is not None and "m" in flags[1] else r"\Z"
    parts, position = [], 0
    while position < len(pattern):
        if pattern[position] == "[":
            part, position = _class(pattern, position)
        else:
            part, position = _atom(pattern, position, end)
        parts.append(part)
    return "".join(parts)


def _atom(pattern: str, position: int, end: str) -> tuple[str, int]:
    """What stands at `position`, outside of a class, and where the next thing stands."""
    if pattern.startswith(r"\Q", position):
        stop = pattern.find(r"\E", position)
        stop = len(pattern) if stop < 0 else stop
        return re.escape(pattern[position + 2 : stop]), stop + 2
    if pattern[position] == "\\":
        return _escape(pattern, position)
    if _NAMED.match(pattern, position):
        return "(?P<", position + 3
    return (end if pattern[position] == "$" else pattern[position]), position + 1


def _escape(pattern: str, position: int) -> tuple[str, int]:
    code_point = _CODE_POINT.match(pattern, position)
    if code_point is not None:
        return re.escape(chr(int(code_point[1], 16))), code_point.end()
    text = pattern[position : position + 2]
    return (r"\Z" if text == r"\z" else text), position + 2


def _class(pattern: str, position: int) -> tuple[str, int]:
    """The character class at `position`."""
    parts = ["["]
    position += 1
    if pattern.startswith("^", position):
        parts.append("^")
        position += 1
    if pattern.startswith("]", position):
        parts.append(r"\]")
        position += 1
    while position < len(pattern) and pattern[position] != "]":
        posix = _POSIX_CLASS.match(pattern, position)
        if posix is not None:
            if posix[1] not in _POSIX:
                raise ValueError(f"there is no class {posix[0]}")
            part, position = _POSIX[posix[1]], posix.end()
        elif pattern[position] == "\\":
            part, position = _escape(pattern, position)
        else:  # a second bracket and doubled marks mean nothing in RE2
            part, position = ("\\" if pattern[position] in "[&~|" else "") + pattern[position], position + 1
        parts.append(part)
    return "".join(parts) + pattern[position : position + 1], position + 1
