# SPDX-License-Identifier: Apache-2.0
"""Which rows a trace is shown in: the tree flattened, with what would drown the rest folded.

Folding goes only as far as it must: first small kernel spans of one name under one parent, then all leaves of one name,
and at last everything but the longest spans. Every span is in some row, so nothing disappears silently.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from ebpftrace.viewer.theme import Glyphs
    from ebpftrace.viewer.trace import Span, Trace

    _Key = Callable[[Span], Hashable]  # the group a span folds into; None when it keeps its own row

_FOLD_FROM = 4  # shorter runs read better unfolded
_SMALL = 50  # a kernel span shorter than this part of the window folds
_DEEPEST = 24  # deeper levels are not indented any more

SYSCALL = "ebpftrace.sched.syscall"


@dataclass(slots=True)
class Row:
    """One row: a span, or several folded into one (`members`)."""

    span: Span
    members: tuple[Span, ...]
    parent: Span | None
    prefix: str
    below: str  # the prefix of further lines that belong to this row
    mixed: bool = False  # its members do not share one name

    @property
    def span_count(self) -> int:
        """How many spans this row stands for, with everything below the folded ones."""
        return sum(1 for member in self.members for _ in member.walk()) if self.members else 1


@dataclass(slots=True)
class Rows:
    """The rows to show, and how many spans did not fit."""

    rows: list[Row]
    left_out: int = 0


def arrange(trace: Trace, glyphs: Glyphs, *, fold: bool = True, max_rows: int = 0) -> Rows:
    """Choose the rows of a trace, at most `max_rows` (0: no limit)."""
    if not fold:
        return _cut(_flatten(trace.roots, glyphs, None), trace, max_rows)
    start, end = trace.window
    small_ns = (end - start) // _SMALL
    # Each try stops when it is known to be too long, because the trace may be huge.
    enough = max_rows + 1 if max_rows else None
    result = list(islice(_flatten(trace.roots, glyphs, lambda span: _small_kernel(span, small_ns)), enough))
    if max_rows and len(result) > max_rows:
        result = list(islice(_flatten(trace.roots, glyphs, _leaf), enough))
    if max_rows and len(result) > max_rows:
        kept = _longest(trace, max_rows // 2)
        return _cut(
            _flatten(trace.roots, glyphs, lambda span: None if id(span) in kept else "rest", least=1), trace, max_rows
        )
    return _cut(result, trace, max_rows)


def _cut(rows: Iterable[Row], trace: Trace, max_rows: int) -> Rows:
    shown: list[Row] = []
    for row in rows:
        if max_rows and len(shown) == max_rows:
            return Rows(shown, len(trace.spans) - sum(row.span_count for row in shown))
        shown.append(row)
    return Rows(shown)


def _small_kernel(span: Span, small_ns: int) -> Hashable:
    if not span.kernel or span.duration_ns > small_ns or span.error is not None:
        return None
    return _leaf(span)


def _leaf(span: Span) -> Hashable:
    if span.children:
        return None
    return span.name, span.kernel, span.text(SYSCALL), span.error is not None, span.defects


def _longest(trace: Trace, count: int) -> set[int]:
    # The longest spans, errors before others, with all their ancestors.
    parents = {id(child): span for span in trace.spans if span.children for child in span.children}
    kept: set[int] = set()
    for span in heapq.nlargest(count, trace.spans, key=lambda span: (span.error is not None, span.duration_ns)):
        above: Span | None = span
        while above is not None and id(above) not in kept:
            if len(kept) > count:
                return kept
            kept.add(id(above))
            above = parents.get(id(above))
    return kept


def _group(spans: Sequence[Span], key: _Key | None, least: int) -> list[tuple[Span, ...]]:
    # In order of time; a group stands where its first member does.
    if key is None or len(spans) < least:
        return [(span,) for span in spans]
    keys = [key(span) for span in spans]
    groups: dict[Hashable, list[Span]] = {}
    for name, span in zip(keys, spans, strict=True):
        if name is not None:
            groups.setdefault(name, []).append(span)
    arranged: list[tuple[Span, ...]] = []
    for name, span in zip(keys, spans, strict=True):
        members = groups.get(name, [])
        if name is None or len(members) < least:
            arranged.append((span,))
        elif members[0] is span:
            arranged.append(tuple(members))
    return arranged


def _flatten(roots: list[Span], glyphs: Glyphs, key: _Key | None, least: int = _FOLD_FROM) -> Iterator[Row]:
    # A stack, not recursion: a chain of spans may be longer than Python's recursion limit.
    waiting: list[tuple[tuple[Span, ...], Span | None, str, int]] = []
    waiting.extend((group, None, "", 0) for group in reversed(_group(roots, key, least)))
    while waiting:
        members, parent, above, depth = waiting.pop()
        span = members[0]
        folded = len(members) > 1 or (least == 1 and key is not None and key(span) is not None and bool(span.children))
        is_last = not waiting or waiting[-1][3] < depth
        prefix, below = _prefixes(above, glyphs, depth, is_last=is_last)
        children = [] if folded else _group(span.children, key, least)
        inner = below + (glyphs.through if children else glyphs.blank)
        mixed = folded and any(member.name != span.name for member in members)
        yield Row(span, members if folded else (), parent, prefix, inner, mixed)
        waiting.extend((group, span, below, depth + 1) for group in reversed(children))


def _prefixes(above: str, glyphs: Glyphs, depth: int, *, is_last: bool) -> tuple[str, str]:
    if not depth:
        return "", ""
    if depth > _DEEPEST:
        return above + f"[{depth}] ", above
    return above + (glyphs.last if is_last else glyphs.branch), above + (glyphs.blank if is_last else glyphs.through)
