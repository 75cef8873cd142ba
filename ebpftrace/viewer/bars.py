# SPDX-License-Identifier: Apache-2.0
"""The right half of the waterfall: bars, ticks and densities on a time axis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING

from ebpftrace.viewer.causes import CAUSES, cause_of
from ebpftrace.viewer.text import cell_width, duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ebpftrace.viewer.theme import Glyphs, Segment, Theme
    from ebpftrace.viewer.trace import Span


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps the trace's window to `cells` terminal cells."""

    start_ns: int
    length_ns: int
    cells: int

    def position(self, time_ns: int) -> float:
        """Where a time lies, in cells from the left, held inside the axis."""
        return min(max(0.0, (time_ns - self.start_ns) / max(1, self.length_ns) * self.cells), float(self.cells))

    def cell(self, time_ns: int) -> int:
        """The cell a time falls into."""
        return min(int(self.position(time_ns)), self.cells - 1)

    def extent(self, span: Span) -> tuple[float, float]:
        """Left and right edge of a span."""
        return self.position(span.start_ns), self.position(span.start_ns + span.duration_ns)

    def step(self) -> int:
        """A round number of nanoseconds (1, 2 or 5 times a power of ten) that gives ticks at least 8 cells apart."""
        least = max(1, self.length_ns) * 8 / self.cells
        power = 1
        while power * 10 <= least:
            power *= 10
        return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def style_of(span: Span) -> str:
    """The colour of a span's bar."""
    if span.error is not None:
        return "error"
    if not span.kernel:
        return "app"
    return f"cause:{span.name}" if span.name in CAUSES else "kernel"


class Canvas:
    """One row of the bar area."""

    def __init__(self, scale: Scale, theme: Theme) -> None:
        self._scale = scale
        self._theme = theme
        self._glyphs: Glyphs = theme.glyphs
        self.cells = list(_grid(scale, theme))

    def axis(self) -> list[Segment]:
        """The row of tick marks and their times."""
        scale = self._scale
        self.cells = [(" ", "")] * scale.cells
        free = 0
        for tick in range(0, max(1, scale.length_ns), scale.step()):
            text = duration(tick)
            if self._theme.ascii_only:
                text = text.replace("µ", "u")
            mark = self._glyphs.tick + text
            at = scale.cell(scale.start_ns + tick)
            if at >= free and at + cell_width(mark) <= scale.cells:
                self.cells[at : at + len(mark)] = [(char, "detail") for char in mark]
                free = at + len(mark) + 1
        return self.cells

    def span(self, span: Span) -> list[Segment]:
        """A span alone: a thick bar for the application's, a thin one for the kernel's, a tick without width."""
        style = style_of(span)
        left, right = self._scale.extent(span)
        if not span.duration_ns:
            self.cells[self._scale.cell(span.start_ns)] = (self._glyphs.event, style)
        elif span.kernel:
            self._thin(left, right, style)
        else:
            self._thick(left, right, style)
            if self._theme.colours:
                self._paint_causes(span, left, right)
        return self.cells

    def _thick(self, left: float, right: float, style: str) -> None:
        glyphs = self._glyphs
        first, last = int(min(left, self._scale.cells - 1)), ceil(right) - 1
        if last <= first:
            self.cells[first] = (_eighth(glyphs, max(right - left, 0.125)), style)
            return
        for cell in range(first + 1, last):
            self.cells[cell] = (glyphs.full, style)
        missing = left - first  # only halves can be drawn from the right
        self.cells[first] = (glyphs.full if missing < 0.3 else glyphs.right_half, style)
        if right - last >= 0.0625:
            self.cells[last] = (_eighth(glyphs, right - last), style)

    def _thin(self, left: float, right: float, style: str) -> None:
        glyphs = self._glyphs
        first, last = int(min(left, self._scale.cells - 1)), ceil(right) - 1
        if last <= first:
            narrow = right - left < 0.6
            late = (left + right) / 2 - first > 0.5
            self.cells[first] = ((glyphs.thin_right if late else glyphs.thin_left) if narrow else glyphs.thin, style)
            return
        for cell in range(first + 1, last):
            self.cells[cell] = (glyphs.thin, style)
        self.cells[first] = (glyphs.thin if left - first < 0.5 else glyphs.thin_right, style)
        self.cells[last] = (glyphs.thin if right - last > 0.5 else glyphs.thin_left, style)

    def _paint_causes(self, span: Span, left: float, right: float) -> None:
        # The span's own bar takes the colour of the wait that filled most of a cell.
        covered = _coverage(self._scale, [child for child in span.children if child.kernel and child.name in CAUSES])
        for cell in range(int(left), min(ceil(right), self._scale.cells)):
            name, amount = max(covered.get(cell, {"": 0.0}).items(), key=lambda item: item[1])
            if amount > 0.5:
                self.cells[cell] = (self.cells[cell][0], f"cause:{name}")

    def fold(self, members: Sequence[Span]) -> list[Segment]:
        """Many spans in one row: each cell as high as it is full, or as its share of the events."""
        styles = {style_of(span) for span in members}
        style = styles.pop() if len(styles) == 1 else "detail"
        timed = _coverage(self._scale, [span for span in members if span.duration_ns])
        if timed:
            heights = {cell: min(1.0, sum(names.values())) for cell, names in timed.items()}
        else:
            counts: dict[int, int] = {}
            for span in members:
                cell = self._scale.cell(span.start_ns)
                counts[cell] = counts.get(cell, 0) + 1
            most = max(counts.values())
            heights = {cell: count / most for cell, count in counts.items()}
        levels = self._glyphs.levels
        for cell, height in heights.items():
            self.cells[cell] = (levels[min(int(height * len(levels)), len(levels) - 1)], style)
        return self.cells

    def stack(self, span: Span, parts: Sequence[tuple[str, int]]) -> list[Segment]:
        """The parts side by side, as long as the span's bar above it; without colours, a letter for each cause."""
        left, right = self._scale.extent(span)
        first = min(int(left), self._scale.cells - 1)
        cells = max(1, round(right) - first)
        total = max(1, sum(amount for _, amount in parts))
        done = 0
        for name, amount in parts:
            begin, done = done, done + amount
            glyph = self._glyphs.stack if self._theme.colours else cause_of(name).letter
            for cell in range(first + round(begin * cells / total), first + round(done * cells / total)):
                self.cells[cell] = (glyph, f"cause:{name}")
        return self.cells


@lru_cache(maxsize=8)
def _grid(scale: Scale, theme: Theme) -> tuple[Segment, ...]:
    # An empty row; it is asked for with each row. Without colours the grid could not be told from the data.
    cells: list[Segment] = [(" ", "")] * scale.cells
    if theme.colours:
        for tick in range(scale.step(), scale.length_ns, scale.step()):
            cells[scale.cell(scale.start_ns + tick)] = (theme.glyphs.grid, "grid")
    return tuple(cells)


def _eighth(glyphs: Glyphs, filled: float) -> str:
    eighths = round(filled * 8)
    return glyphs.full if eighths >= 8 else glyphs.eighths[max(eighths, 1) - 1].replace(" ", glyphs.full)


def _coverage(scale: Scale, spans: Sequence[Span]) -> dict[int, dict[str, float]]:
    # cell -> name -> which part of the cell the spans of that name cover
    covered: dict[int, dict[str, float]] = {}
    for span in spans:
        left, right = scale.extent(span)
        for cell in range(int(left), min(ceil(right), scale.cells)):
            part = min(right, cell + 1) - max(left, cell)
            names = covered.setdefault(cell, {})
            names[span.name] = names.get(span.name, 0.0) + part
    return covered
