# SPDX-License-Identifier: Apache-2.0
"""The tree of a trace, as the viewer, the verdict and the checker see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

AttributeValue: TypeAlias = "bool | int | float | str | tuple[AttributeValue, ...] | dict[str, AttributeValue] | None"

TIME_PREFIX = "ebpftrace.time."
PROGRAM = "ebpftrace.program"
LOST_RECORDS = "ebpftrace.lost_records"

ORPHAN = "parent not in this file"
CYCLE = "its parents form a circle"
DUPLICATE = "span id used twice"
BACKWARDS = "ends before it starts"
UNFINISHED = "has no end time"
NO_START = "has no start time"


@dataclass(slots=True, frozen=True)
class Event:
    """Something that happened at one instant of a span."""

    name: str
    time_ns: int
    attributes: dict[str, AttributeValue]


@dataclass(slots=True, eq=False)
class Span:
    """One span; `children` and the defects are filled in when its trace is built.

    Names and attributes are as they stand in the file: whoever prints them must clean them first
    (`ebpftrace.viewer.text.clean`), because a span's name may hold escape codes.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    end_ns: int
    attributes: dict[str, AttributeValue]
    error: str | None = None  # the status description, perhaps empty, when the status is an error
    events: tuple[Event, ...] = ()
    children: list[Span] = field(default_factory=list)
    defects: tuple[str, ...] = ()

    @property
    def kernel(self) -> bool:
        """Whether ebpftrace made this span of a kernel record.

        The attribute decides, not the service name, because the kernel's service name is configurable.
        """
        return PROGRAM in self.attributes

    @property
    def duration_ns(self) -> int:
        """Wall time; zero for a span whose times are impossible (see `defects`)."""
        return max(0, self.end_ns - self.start_ns)

    @property
    def breakdown(self) -> dict[str, int]:
        """Where the wall time went: cause -> nanoseconds, zero parts left out; empty when nothing is known."""
        parts: dict[str, int] = {}
        for key, value in self.attributes.items():
            if key.startswith(TIME_PREFIX) and isinstance(value, int) and not isinstance(value, bool) and value > 0:
                parts[key.removeprefix(TIME_PREFIX)] = value
        return parts

    @property
    def lost_records(self) -> int:
        """How many kernel records of this span were lost before they could become spans."""
        return self.integer(LOST_RECORDS) or 0

    def integer(self, key: str) -> int | None:
        """The attribute `key` when it is an integer."""
        value = self.attributes.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def text(self, key: str) -> str:
        """The attribute `key` when it is a string, else an empty one."""
        value = self.attributes.get(key)
        return value if isinstance(value, str) else ""

    def walk(self) -> Iterator[Span]:
        """This span and all below it, parents first; a stack, not recursion, because a chain may be very long."""
        stack = [self]
        while stack:
            span = stack.pop()
            yield span
            stack.extend(reversed(span.children))


@dataclass(slots=True, eq=False)
class Trace:
    """All spans of one trace id, as trees."""

    trace_id: str
    spans: list[Span]
    roots: list[Span]

    @property
    def root(self) -> Span:
        """The span that stands for the trace: the longest true root, or the longest tree when none is complete."""
        return max(self.roots, key=lambda span: (not span.kernel, ORPHAN not in span.defects, span.duration_ns))

    @property
    def window(self) -> tuple[int, int]:
        """First start and last end; spans without a start time would stretch it to 1970 and are left out."""
        timed = [span for span in self.spans if span.start_ns] or self.spans
        start = min(span.start_ns for span in timed)
        return start, max(start, *(span.end_ns for span in timed))

    @property
    def kernel_count(self) -> int:
        """How many of the spans are kernel spans."""
        return sum(span.kernel for span in self.spans)

    @property
    def error_count(self) -> int:
        """How many spans have an error status."""
        return sum(span.error is not None for span in self.spans)


def build_traces(spans: Iterable[Span]) -> list[Trace]:
    """Group spans by trace id and join each group into trees, slowest root first.

    No span is dropped: one without its parent becomes a root, and so does the earliest of a circle; each carries
    the reason in `defects`.
    """
    groups: dict[str, list[Span]] = {}
    for span in spans:
        groups.setdefault(span.trace_id, []).append(span)
    traces = [_build(trace_id, members) for trace_id, members in groups.items()]
    traces.sort(key=lambda trace: trace.root.duration_ns, reverse=True)
    return traces


def _build(trace_id: str, spans: list[Span]) -> Trace:
    spans.sort(key=attrgetter("start_ns"))
    by_id: dict[str, Span] = {}
    for span in spans:
        span.children = []
        span.defects = _time_defects(span)
        if by_id.setdefault(span.span_id, span) is not span:
            span.defects += (DUPLICATE,)
    roots: list[Span] = []
    for span in spans:
        parent = by_id.get(span.parent_id) if span.parent_id else None
        if parent is not None:
            parent.children.append(span)
            continue
        if span.parent_id:
            span.defects += (ORPHAN,)
        roots.append(span)
    roots.extend(_break_circles(spans, roots, by_id))
    roots.sort(key=attrgetter("start_ns"))
    return Trace(trace_id, spans, roots)


def _time_defects(span: Span) -> tuple[str, ...]:
    found = []
    if not span.start_ns:
        found.append(NO_START)
    if not span.end_ns:
        found.append(UNFINISHED)
    elif span.end_ns < span.start_ns:
        found.append(BACKWARDS)
    return tuple(found)


def _break_circles(spans: list[Span], roots: list[Span], by_id: dict[str, Span]) -> list[Span]:
    # What no root leads to hangs on a circle. Walk up from each such span to a span on the circle itself, and cut
    # above it: cutting at any other span would leave the circle closed.
    reached = {id(span) for root in roots for span in root.walk()}
    cut: list[Span] = []
    for span in spans:
        if id(span) in reached:
            continue
        seen: set[int] = set()
        while id(span) not in seen:
            seen.add(id(span))
            span = by_id[span.parent_id]  # noqa: PLW2901  # the walk starts from the loop's span on purpose
        by_id[span.parent_id].children.remove(span)
        span.defects += (CYCLE,)
        cut.append(span)
        reached.update(id(below) for below in span.walk())
    return cut
