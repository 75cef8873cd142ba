# SPDX-License-Identifier: Apache-2.0
"""Text for a terminal: safe, of known width, and for people."""

from __future__ import annotations

import unicodedata

_LONGEST = 2000


def clean(text: str, *, ascii_only: bool = False) -> str:
    r"""Make text from a trace safe to print: what is not printable becomes a visible escape such as `\x1b`.

    That covers escape codes, line breaks, bidirectional overrides and lone surrogates, so that no span can move the
    cursor, recolour the terminal or break its stream. With `ascii_only`, everything else outside ASCII is escaped too.
    """
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "…"
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _escape(char) for char in text)
    if ascii_only and not text.isascii():
        text = "".join(char if char.isascii() else _ASCII.get(char) or _escape(char) for char in text)
    return text


# The viewer's own words use these; they have a plain spelling, other characters only an escape.
_ASCII = {"µ": "u", "…": "...", "“": '"', "”": '"', "\N{REPLACEMENT CHARACTER}": "?"}


def _escape(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode() if ord(char) > 0x7F else f"\\x{ord(char):02x}"


def cell_width(text: str) -> int:
    """How many terminal cells a cleaned text takes: wide East Asian characters two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(map(_char_width, text))


def _char_width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clip(text: str, width: int, ellipsis: str = "…") -> str:
    """Shorten a cleaned text to `width` cells, with an ellipsis when something was cut."""
    if cell_width(text) <= width:
        return text
    room = width - cell_width(ellipsis)
    if room < 0:
        return ellipsis[:width]
    taken = 0
    for index, char in enumerate(text):
        taken += _char_width(char)
        if taken > room:
            return text[:index] + ellipsis
    return text


def wrap(text: str, width: int) -> list[str]:
    """Break a cleaned text between words into lines of at most `width` cells; only a longer word is broken itself."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_width(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for char in word:
            if cell_width(lines[-1]) + _char_width(char) > width:
                lines.append("")
            lines[-1] += char
    return lines


_UNITS = ((1, "ns"), (1_000, "µs"), (1_000_000, "ms"), (1_000_000_000, "s"))


def duration(nanoseconds: int) -> str:
    """A duration in three digits: `0`, `812 ns`, `12.3 µs`, `310 ms`, `1.25 s`, `2 min 5 s`, `3 h 12 min`."""
    if nanoseconds <= 0:
        return "0"
    for size, unit in _UNITS:
        value = nanoseconds / size
        if unit != "s" and value >= 999.5:
            continue
        if unit == "s" and value >= 119.5:
            break
        # Round first: 9.996 is "10.0", not "10.00".
        digits = 0 if size == 1 or value >= 99.95 else 1 if value >= 9.995 else 2
        shown = f"{value:.{digits}f}"
        return f"{shown.rstrip('0').rstrip('.') if '.' in shown else shown} {unit}"
    minutes, seconds = divmod(round(nanoseconds / 1e9), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def share(part: int, whole: int) -> str:
    """A percentage as words: `62 %`, `<1 %`; never `0 %` for something nor `100 %` for a part."""
    percent = 100 * part / whole if whole else 0.0
    if part and percent < 1:
        return "<1 %"
    if part < whole and percent > 99:
        return ">99 %"
    return f"{percent:.0f} %"
