# SPDX-License-Identifier: Apache-2.0
"""Check that a trace file keeps the promises kernel spans are made under: `python -m ebpftrace.viewer.check FILE`.

The demos and the tests run it on what they recorded, so that "the trace came out right" is one command.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebpftrace.viewer.otlp import TraceFileError, load, parse
from ebpftrace.viewer.text import clean, duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ebpftrace.viewer.trace import Span

TOLERANCE_NS = 1_000_000
_SUM_PART = 50  # a breakdown may miss the wall time by this part of it (2 %) ...
_SUM_SLACK_NS = 200_000  # ... or by this much, whichever is more: short spans have no precise 2 %


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken promise: which (`kind`), of which span, and the numbers in words."""

    kind: str
    trace_id: str
    span_id: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: trace {self.trace_id} span {self.span_id}: {self.message}"


def check(lines: Iterable[bytes | str], *, tolerance_ns: int = TOLERANCE_NS) -> list[Problem]:
    """Check OTLP JSON lines.

    Raises:
        TraceFileError: the lines are not OTLP JSON at all.
    """
    raw = (line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line for line in lines)
    return check_spans(parse(raw).spans, tolerance_ns=tolerance_ns)


def check_spans(spans: Sequence[Span], *, tolerance_ns: int = TOLERANCE_NS) -> list[Problem]:
    """Check spans already read; problems come in the order of the spans."""
    by_id: dict[str, Span] = {}
    problems = [
        _problem("duplicate-span-id", span, f"has the id of {_name(by_id[span.span_id])} as well")
        for span in spans
        if by_id.setdefault(span.span_id, span) is not span
    ]
    for span in spans:
        problems += _time_problems(span)
        problems += _parent_problems(span, by_id, tolerance_ns)
        problems += _sum_problems(span)
    problems += _circles(spans, by_id)
    return problems


def _problem(kind: str, span: Span, message: str) -> Problem:
    return Problem(kind, span.trace_id, span.span_id, f"{_name(span)} {message}")


def _name(span: Span) -> str:
    return f"{'kernel span' if span.kernel else 'span'} {clean(span.name)!r}"


def _time_problems(span: Span) -> list[Problem]:
    if not span.start_ns or not span.end_ns:
        return [_problem("no-time", span, f"has no {'start' if not span.start_ns else 'end'} time")]
    if span.end_ns < span.start_ns:
        return [_problem("ends-before-start", span, f"ends {duration(span.start_ns - span.end_ns)} before it starts")]
    return []


def _parent_problems(span: Span, by_id: dict[str, Span], tolerance_ns: int) -> list[Problem]:
    if not span.parent_id:
        return []
    parent = by_id.get(span.parent_id)
    if parent is None:
        return [_problem("parent-missing", span, f"has the parent {span.parent_id}, which is not in the file")]
    if parent.trace_id != span.trace_id:
        return [_problem("trace-id-differs", span, f"has its parent {_name(parent)} in trace {parent.trace_id}")]
    if not span.kernel:
        return []  # an application's child may well outlive its parent
    early, late = parent.start_ns - span.start_ns, span.end_ns - parent.end_ns
    if max(early, late) <= tolerance_ns:
        return []
    how = f"starts {duration(early)} before" if early > late else f"ends {duration(late)} after"
    return [_problem("outside-parent", span, f"{how} its parent {_name(parent)} does")]


def _sum_problems(span: Span) -> list[Problem]:
    parts = span.breakdown
    if not parts or span.kernel or "suspended" in parts:
        return []  # a suspended coroutine's time is not one thread's time
    total, wall = sum(parts.values()), span.duration_ns
    if abs(total - wall) <= max(wall // _SUM_PART, _SUM_SLACK_NS):
        return []
    return [_problem("breakdown-sum", span, f"took {duration(wall)}, but its breakdown adds up to {duration(total)}")]


def _circles(spans: Sequence[Span], by_id: dict[str, Span]) -> list[Problem]:
    problems = []
    settled: set[str] = set()
    for span in spans:
        path: dict[str, Span] = {}
        above: Span | None = span
        while above is not None and above.span_id not in settled and above.span_id not in path:
            path[above.span_id] = above
            above = by_id.get(above.parent_id)
        if above is not None and above.span_id in path:
            problems.append(_problem("circle", above, "is its own ancestor"))
        settled.update(path)
    return problems


def summary(spans: Sequence[Span]) -> str:
    """How many traces, application spans and kernel spans by name there are."""
    kernel = Counter(clean(span.name) for span in spans if span.kernel)
    traces = len({span.trace_id for span in spans})
    lines = [
        f"traces: {traces}",
        f"application spans: {len(spans) - kernel.total()}",
        f"application spans with a breakdown: {sum(bool(span.breakdown) and not span.kernel for span in spans)}",
        f"kernel spans: {kernel.total()}",
        *(f"  {name}: {count}" for name, count in kernel.most_common()),
    ]
    lost = sum(span.lost_records for span in spans)
    if lost:
        lines.append(f"lost records: {lost}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the problems of a file and its summary; 1 when there are problems or it cannot be read, else 0."""
    parser = argparse.ArgumentParser(prog="python -m ebpftrace.viewer.check", description=main.__doc__)
    parser.add_argument("file", help="OTLP JSON lines; - for standard input")
    parser.add_argument(
        "--tolerance-us", type=int, default=TOLERANCE_NS // 1000, metavar="N",
        help="how far a kernel span may reach out of its parent (default: %(default)s µs)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        document = load(options.file)
    except TraceFileError as error:
        sys.stderr.write(f"{clean(options.file)}: {error}\n")
        return 1
    problems = check_spans(document.spans, tolerance_ns=options.tolerance_us * 1000)
    for note in document.notes:
        sys.stderr.write(f"note: {note}\n")
    sys.stdout.write("".join(f"{problem}\n" for problem in problems))
    sys.stdout.write(f"{summary(document.spans)}\nproblems: {len(problems)}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
