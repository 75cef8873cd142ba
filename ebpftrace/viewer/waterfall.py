# SPDX-License-Identifier: Apache-2.0
"""A trace as a waterfall for the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebpftrace.viewer.bars import Canvas, Scale
from ebpftrace.viewer.causes import CAUSES
from ebpftrace.viewer.labels import Labels, breakdown_parts, label_of, plural, when
from ebpftrace.viewer.rows import arrange
from ebpftrace.viewer.text import cell_width, clip, duration, wrap
from ebpftrace.viewer.theme import Theme, line_width
from ebpftrace.viewer.verdict import verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ebpftrace.viewer.rows import Row
    from ebpftrace.viewer.theme import Line, Segment
    from ebpftrace.viewer.trace import Trace

_ID_CELLS = 12  # of a trace id in a list; --trace takes the start of one
_TIME_CELLS = 8  # "12.3 ms" and "59 min 59 s" is the one that may be cut
_MATTERS = 100  # a breakdown is shown from this part of the trace's window on
MIN_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Options:
    """How much of a trace to show.

    Attributes:
        width: cells of a line.
        breakdown: `auto` (spans that matter), `all` or `none`.
        fold: whether rows of one name may be folded into one.
        max_rows: fold until no more rows than these are left; 0 for no limit.
        verdict: whether to end with the verdict in words.
    """

    width: int = 100
    breakdown: str = "auto"
    fold: bool = True
    max_rows: int = 300
    verdict: bool = True


def render(trace: Trace, options: Options | None = None, theme: Theme | None = None) -> Iterator[str]:
    """The lines of a trace's waterfall, without line ends, none wider than `options.width`."""
    painter = _Waterfall(trace, options or Options(), theme or Theme())
    for line in painter.lines():
        yield painter.theme.paint(line)


def render_list(traces: Sequence[Trace], options: Options, theme: Theme) -> Iterator[str]:
    """One line a trace: id, start, duration, spans, kernel spans, errors, root name; slowest first."""
    labels = Labels(theme)
    columns = ("trace", "start (UTC)", "duration", "spans", "kernel", "errors", "root")
    head = "{:12}  {:14}  {:>8} {:>6} {:>7} {:>6}  {}".format(*columns)
    yield theme.paint(labels.clip([(head, "dim")], options.width))
    for trace in traces:
        kernel, errors = trace.kernel_count, trace.error_count
        start, end = trace.window
        root = trace.root
        line: Line = [
            (f"{trace.trace_id[:_ID_CELLS]}  {when(start)[5:19]}  ", "detail"),
            (f"{labels.text(duration(end - start)):>8} ", "bold"),
            (f"{len(trace.spans) - kernel:>6,} {kernel:>7,} ", ""),
            (f"{errors or '':>6}", "error"),
            (f"  {labels.text(root.name) or '(no name)'}", "error" if root.error is not None else "bold"),
            (f"  {labels.text(root.service)}", "service"),
        ]
        yield theme.paint(labels.clip(line, options.width))


class _Waterfall:
    """Lays out one trace."""

    def __init__(self, trace: Trace, options: Options, theme: Theme) -> None:
        self.theme = theme
        self._trace = trace
        self._options = options
        self._width = max(options.width, MIN_WIDTH)
        self._labels = Labels(theme)
        self._arranged = arrange(trace, theme.glyphs, fold=options.fold, max_rows=options.max_rows)
        start, end = trace.window
        self._window_ns = end - start
        # One cell stays free at the right, so that a full line does not wrap in a terminal.
        self._left = self._left_width()
        cells = self._width - self._left - _TIME_CELLS - 3
        self._scale = Scale(start, self._window_ns, cells)
        self._used: dict[str, str] = {}  # legend: what has been drawn -> its style

    def lines(self) -> Iterator[Line]:
        """All lines: title, axis, rows, legend, verdict."""
        yield from (self._labels.clip(line, self._width) for line in self._labels.title(self._trace))
        yield []
        yield self._join([], "", Canvas(self._scale, self.theme).axis())
        for row in self._arranged.rows:
            yield from self._row(row)
        if self._arranged.left_out:
            text = (
                f"{self.theme.glyphs.ellipsis} {plural(self._arranged.left_out, 'more span')}: --max-rows 0 shows all"
            )
            yield [(text, "warning")]
        yield []
        yield from self._legend()
        if self._options.verdict:
            yield []
            yield from self._verdict()

    def _left_width(self) -> int:
        natural = 16
        for row in self._arranged.rows:
            natural = max(natural, line_width(self._labels.row(row)))
            if self._shows_breakdown(row):
                words = self._labels.breakdown(row.span, breakdown_parts(row.span), 1000)
                natural = max(natural, line_width(words) + cell_width(row.below) - _TIME_CELLS - 1)
        return min(natural, int(self._width * 0.45))

    def _shows_breakdown(self, row: Row) -> bool:
        span = row.span
        if row.members or span.kernel or self._options.breakdown == "none" or not span.breakdown:
            return False
        return self._options.breakdown == "all" or span.duration_ns * _MATTERS > self._window_ns

    def _join(self, label: Line, time: str, bar: Sequence[Segment]) -> Line:
        left = self._labels.clip(label, self._left)
        filler = " " * (self._left - line_width(left) + 1)
        return [*left, (filler, ""), (clip(time, _TIME_CELLS, "").rjust(_TIME_CELLS), ""), (" ", ""), *bar]

    def _row(self, row: Row) -> Iterator[Line]:
        canvas = Canvas(self._scale, self.theme)
        span = row.span
        time = sum(member.duration_ns for member in row.members) if row.members else span.duration_ns
        bar = canvas.fold(row.members) if row.members else canvas.span(span)
        self._remember(row)
        label = self._labels.row(row)
        yield self._join(label, self._labels.text(duration(time)) if time else "", bar)
        if span.defects and line_width(label) > self._left:  # cut off behind a long name
            defects = ", ".join(span.defects)
            yield self._labels.clip(
                [(row.below, "detail"), (self.theme.glyphs.warning + defects, "warning")], self._width
            )
        if row.members:
            return
        if self._shows_breakdown(row):
            yield self._breakdown(row)
        yield from self._remarks(row)

    def _breakdown(self, row: Row) -> Line:
        parts = breakdown_parts(row.span)
        for name, _ in parts:
            self._used.setdefault(f"cause:{name}", f"cause:{name}")
        left = self._left + _TIME_CELLS + 1
        words = self._labels.breakdown(row.span, parts, left - cell_width(row.below))
        line: Line = [(row.below, "detail"), *words]
        line = self._labels.clip(line, left)
        bar = Canvas(self._scale, self.theme).stack(row.span, parts)
        return [*line, (" " * (left + 1 - line_width(line)), ""), *bar]

    def _remarks(self, row: Row) -> Iterator[Line]:
        span, glyphs = row.span, self.theme.glyphs
        remarks: Line = []
        if span.error is not None:
            words = [span.error] if span.error else []
            for event in span.events:
                if event.name == "exception":
                    kind, message = event.attributes.get("exception.type"), event.attributes.get("exception.message")
                    words += [": ".join(str(part) for part in (kind, message) if part)]
            # The SDK writes the exception into both the status and an event.
            unique = [word for index, word in enumerate(words) if not any(word in other for other in words[:index])]
            remarks += [(glyphs.cross + self._labels.text(word), "error") for word in unique if word]
        if span.lost_records:
            lost = plural(span.lost_records, "kernel record")
            remarks.append((f"{glyphs.warning}{lost} lost: the kernel spans below are incomplete", "warning"))
        for remark in remarks:
            yield self._labels.clip([(row.below, "detail"), remark], self._width)

    def _remember(self, row: Row) -> None:
        span = row.span
        if span.kernel and span.name in CAUSES and not row.mixed:
            self._used[f"cause:{span.name}"] = f"cause:{span.name}"
        if row.members:
            self._used["fold"] = "detail"
        elif not span.duration_ns:
            self._used["event"] = "kernel" if span.kernel else "app"
        elif span.kernel:
            self._used["kernel"] = "kernel"
        else:
            self._used["app"] = "app"

    def _legend(self) -> Iterator[Line]:
        glyphs = self.theme.glyphs
        words = {
            "app": (glyphs.full * 2, "application span"),
            "kernel": (glyphs.thin * 2, "kernel span"),
            "event": (glyphs.event, "instant"),
            "fold": (glyphs.levels[1::3], "folded: fill or density"),
        }
        entries: list[Line] = []
        for kind, (mark, meaning) in words.items():
            if kind in self._used:
                entries.append([(mark, self._used[kind]), (f" {meaning}", "detail")])
        order = [*CAUSES, ""]
        causes = [key.removeprefix("cause:") for key in self._used if key.startswith("cause:")]
        for name in sorted(causes, key=lambda name: order.index(name) if name in order else len(order)):
            mark = glyphs.stack if self.theme.colours else _letter(name)
            entries.append([(mark, f"cause:{name}"), (f" {label_of(name)}", "detail")])
        line: Line = []
        for entry in entries:
            if line and line_width(line) + line_width(entry) + 3 > self._width:
                yield line
                line = []
            line = [*line, ("   ", ""), *entry] if line else entry
        if line:
            yield line

    def _verdict(self) -> Iterator[Line]:
        words = self._labels.text(verdict(self._trace)).replace(" %", "\xa0%")  # a line must not begin with "%"
        for text in wrap(words, min(self._width, 110) - 2):
            yield [(self.theme.glyphs.quote.ljust(2), "warning"), (text.replace("\xa0", " "), "")]


def _letter(name: str) -> str:
    return CAUSES[name].letter if name in CAUSES else "?"
