# SPDX-License-Identifier: Apache-2.0
"""What the waterfall is drawn with: glyphs for Unicode and ASCII terminals, colours, and the lines made of both."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO, TypeAlias

from ebpftrace.viewer.causes import cause_of
from ebpftrace.viewer.text import cell_width

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# A line is made of (text, style) pairs and becomes escape codes only at the very end, so that its width is known.
Segment: TypeAlias = tuple[str, str]
Line: TypeAlias = list[Segment]


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters of one kind of terminal."""

    branch: str
    last: str
    through: str
    blank: str
    kernel: str
    cross: str
    warning: str
    event: str
    tick: str
    grid: str
    full: str
    right_half: str
    eighths: str  # from the left, 1/8 to 7/8
    thin: str
    thin_left: str
    thin_right: str
    levels: str  # from below, for folded rows
    stack: str
    times: str
    dot: str
    ellipsis: str
    arrow: str
    quote: str


UNICODE = Glyphs(
    branch="├╴", last="╰╴", through="│ ", blank="  ", kernel="⚙ ", cross="✗ ", warning="⚠ ", event="◆", tick="╷",
    grid="┊", full="█", right_half="▐", eighths="▏▎▍▌▋▊▉", thin="━", thin_left="╸", thin_right="╺", levels="▁▂▃▄▅▆▇█",
    stack="■", times="\N{MULTIPLICATION SIGN}", dot=" · ", ellipsis="…", arrow="← ", quote="▎",
)  # fmt: skip
ASCII = Glyphs(
    branch="|-", last="`-", through="| ", blank="  ", kernel="k ", cross="x ", warning="! ", event="|", tick="|",
    grid=":", full="#", right_half="#", eighths=" ######", thin="=", thin_left="=", thin_right="=", levels="..::-=+#",
    stack="#", times="x", dot=", ", ellipsis="...", arrow="<- ", quote=">",
)  # fmt: skip

_SGR = {
    "bold": ("1", "1"),
    "dim": ("2", "2"),
    "detail": ("38;5;245", "2"),
    "grid": ("38;5;238", "2"),
    "app": ("38;5;67", "34"),
    "service": ("38;5;109", "36"),
    "kernel": ("38;5;144", "33"),
    "error": ("1;38;5;203", "1;31"),
    "warning": ("38;5;220", "33"),
}


@dataclass(frozen=True, slots=True)
class Theme:
    """How to draw on one output.

    Attributes:
        ascii_only: nothing outside ASCII may be written.
        colours: how many the output knows: 0, 16 or 256.
    """

    ascii_only: bool = False
    colours: int = 0

    @property
    def glyphs(self) -> Glyphs:
        """The characters to draw with."""
        return ASCII if self.ascii_only else UNICODE

    def paint(self, line: Iterable[Segment]) -> str:
        """The line as text, neighbours of one style under one escape code, blanks at its end cut off."""
        if not self.colours:
            return "".join([text for text, _ in line]).rstrip()
        merged: list[list[str]] = []
        for text, style in line:
            if merged and (merged[-1][1] == style or not text.strip()):
                merged[-1][0] += text  # a blank looks the same in every style: none of ours has a background
            elif text:
                merged.append([text, style])
        while merged and not merged[-1][0].rstrip():
            merged.pop()
        if merged:
            merged[-1][0] = merged[-1][0].rstrip()
        return "".join(self._colour(text, style) for text, style in merged)

    def _colour(self, text: str, style: str) -> str:
        if not style:
            return text
        if style.startswith("cause:"):
            cause = cause_of(style.removeprefix("cause:"))
            code = f"38;5;{cause.colour}" if self.colours == 256 else str(cause.basic)
        else:
            code = _SGR[style][self.colours != 256]
        return f"\x1b[{code}m{text}\x1b[0m"


def line_width(line: Iterable[Segment]) -> int:
    """How many cells a line takes."""
    return sum(cell_width(text) for text, _ in line)


def choose_theme(
    stream: TextIO, *, colour: str = "auto", ascii_only: bool = False, env: Mapping[str, str] = os.environ
) -> Theme:
    """The theme for a stream: colours only on a terminal that wants them, Unicode only where the encoding has it.

    `NO_COLOR` (not empty) and `TERM=dumb` turn automatic colours off; `colour="always"` is the user's word and wins.
    """
    if not ascii_only:
        try:
            "".join(str(getattr(UNICODE, name)) for name in UNICODE.__slots__).encode(stream.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            ascii_only = True
    term = env.get("TERM", "")
    wanted = colour == "always" or (
        colour == "auto" and stream.isatty() and not env.get("NO_COLOR") and term not in ("", "dumb")
    )
    if not wanted:
        return Theme(ascii_only, 0)
    rich = colour == "always" and term in ("", "dumb")  # no terminal asked: most that will show it know 256 colours
    many = rich or "256" in term or "direct" in term or env.get("COLORTERM", "") in ("truecolor", "24bit")
    return Theme(ascii_only, 256 if many else 16)
