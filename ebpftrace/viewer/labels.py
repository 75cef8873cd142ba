# SPDX-License-Identifier: Apache-2.0
"""The words of the waterfall: what stands left of the bars, under a span, and in the title."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ebpftrace.viewer.bars import style_of
from ebpftrace.viewer.causes import CAUSES, UNKNOWN, cause_of
from ebpftrace.viewer.rows import SYSCALL
from ebpftrace.viewer.text import cell_width, clean, clip, duration, share
from ebpftrace.viewer.theme import line_width

if TYPE_CHECKING:
    from ebpftrace.viewer.rows import Row
    from ebpftrace.viewer.theme import Line, Theme
    from ebpftrace.viewer.trace import AttributeValue, Span, Trace

_UNACCOUNTED = 50  # less than this part of a span is a rounding error, not a gap


class Labels:
    """Writes the words for one theme; everything from the trace goes through `clean` here."""

    def __init__(self, theme: Theme) -> None:
        self._theme = theme

    def text(self, text: str) -> str:
        """A text of the trace or of ours, safe for the output."""
        return clean(text, ascii_only=self._theme.ascii_only)

    def clip(self, line: Line, width: int) -> Line:
        """The line in at most `width` cells."""
        shown: Line = []
        for text, style in line:
            room = width - line_width(shown)
            if cell_width(text) > room:
                shown.append((clip(text, room, self._theme.glyphs.ellipsis), style))
                break
            shown.append((text, style))
        return shown

    def row(self, row: Row) -> Line:
        """The tree connector and the name of a row."""
        line: Line = [(row.prefix, "detail")]
        span = row.span
        if row.mixed:
            return [*line, (f"{row.span_count:,} more spans", "detail")]
        if span.error is not None:
            line.append((self._theme.glyphs.cross, "error"))
        if span.kernel:
            line += self._kernel(span, folded=bool(row.members))
        else:
            line.append((self.text(span.name) or "(no name)", "error" if span.error is not None else "bold"))
            if span.service and (row.parent is None or row.parent.service != span.service):
                line.append(("  " + self.text(span.service), "service"))
        if row.members:
            line.append((f" {self._theme.glyphs.times}{row.span_count:,}", "bold"))
        line.extend((f" ({defect})", "warning") for defect in span.defects)
        return line

    def _kernel(self, span: Span, *, folded: bool) -> Line:
        style = style_of(span)
        cause = CAUSES.get(span.name)
        line: Line = [
            (self._theme.glyphs.kernel, style),
            (cause.label if cause else self.text(span.name) or "(no name)", style),
        ]
        details = [self.text(span.text(SYSCALL))]
        if not folded:
            arguments = span.attributes.get("process.command_args")
            if isinstance(arguments, tuple):
                details.append(self.text(" ".join(map(_plain, arguments[1:]))))
            waker = " ".join(filter(None, (self.text(span.text("ebpftrace.sched.waker.comm")), _waker_pid(span))))
            details.append(self._theme.glyphs.arrow + waker if waker else "")
        detail = " ".join(filter(None, details))
        if detail:
            line.append((" " + detail, "detail"))
        if not folded and (code := span.integer("process.exit.code")):
            line.append((f" exit {code}", "error"))
        return line

    def breakdown(self, span: Span, parts: list[tuple[str, int]], width: int) -> Line:
        """The shares of a span's time, as many as fit, the rest counted."""
        whole = whole_of(span)
        written: Line = []
        for index, (name, amount) in enumerate(parts):
            amount_text = f" ({self.text(duration(amount))})" if index == 0 else ""
            piece: Line = [
                (self._theme.glyphs.dot if written else "", "detail"),
                (label_of(name), f"cause:{name}"),
                (f" {share(amount, whole)}{amount_text}", ""),
            ]
            left = len(parts) - index - 1
            more = f" +{left}" if left else ""
            if written and line_width(written) + line_width(piece) + len(more) > width:
                written.append((f" +{left + 1}", "detail"))
                break
            written += piece
        return self.clip(written, width)

    def title(self, trace: Trace) -> list[Line]:
        """Two lines that say which trace this is."""
        root, dot = trace.root, self._theme.glyphs.dot
        start, end = trace.window
        kernel, errors = trace.kernel_count, trace.error_count
        first: Line = [
            (self.text(root.name) or "(no name)", "error" if root.error is not None else "bold"),
            ("  " + self.text(duration(end - start)), "bold"),
            ("  " + self.text(root.service) if root.service else "", "service"),
            ("  " + plural(len(trace.spans) - kernel, "span"), "detail"),
            (dot + plural(kernel, "kernel span"), "detail"),
        ]
        if errors:
            first += [(dot, "detail"), (plural(errors, "error"), "error")]
        second: Line = [(f"trace {trace.trace_id}{dot}{when(start)}", "detail")]
        return [first, second]


def breakdown_parts(span: Span) -> list[tuple[str, int]]:
    """The parts of a span's breakdown, largest first; what they leave open is a last part without a name."""
    parts = sorted(span.breakdown.items(), key=lambda part: part[1], reverse=True)
    missing = span.duration_ns - sum(amount for _, amount in parts)
    if parts and missing > span.duration_ns // _UNACCOUNTED:
        parts.append(("", missing))
    return parts


def whole_of(span: Span) -> int:
    """What a breakdown's shares are of: the wall time, or the sum where that is more."""
    return max(span.duration_ns, sum(span.breakdown.values()))


def label_of(name: str) -> str:
    """The word for a part of a breakdown."""
    return clean(cause_of(name).label, ascii_only=True) if name else UNKNOWN.label


def plural(count: int, noun: str) -> str:
    """`1 span`, `2 spans`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def when(epoch_ns: int) -> str:
    """A point in time, in UTC with milliseconds."""
    moment = datetime.fromtimestamp(epoch_ns // 10**9, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{epoch_ns % 10**9 // 10**6:03d} UTC"


def _waker_pid(span: Span) -> str:
    pid = span.integer("ebpftrace.sched.waker.pid")
    return str(pid) if pid else ""


def _plain(value: AttributeValue) -> str:
    return value if isinstance(value, str) else str(value)
