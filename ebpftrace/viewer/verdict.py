# SPDX-License-Identifier: Apache-2.0
"""What a trace says about its slowest request, in words."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ebpftrace.viewer.causes import UNKNOWN, cause_of
from ebpftrace.viewer.labels import breakdown_parts, plural, whole_of
from ebpftrace.viewer.rows import SYSCALL
from ebpftrace.viewer.text import clean, duration, share
from ebpftrace.viewer.trace import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ebpftrace.viewer.trace import Span, Trace

_NAMED = 20  # parts below this fraction of the whole are only summed up
_MOST = 0.5  # a system call or waker is named when it accounts for this much of its cause
_NEARLY_ALL = 0.9  # waits that are all of a cause, but for the short ones that have no spans
# Where the thread that ended a wait is part of the answer; who ends a sleep or a disk read is the kernel itself.
_WAKER_TELLS = {"lock": "released", "other": "woken"}
_CHILD_WAITS = ("wait4", "waitid")


def verdict(trace: Trace, span: Span | None = None) -> str:
    """Say in one paragraph where a request's time went and what to do about the largest part.

    Everything said comes from the trace: shares from the span's breakdown, system calls and wakers from the kernel
    spans below it. When the root carries no breakdown, its longest span that does is explained instead, and named.

    Args:
        trace: the trace the span is in.
        span: the span to explain; the trace's root when left out.
    """
    subject = span or trace.root
    explained = subject if subject.breakdown else _longest_with_breakdown(subject)
    if explained is None:
        return _without_breakdown(subject)
    parts = breakdown_parts(explained)
    whole = whole_of(explained)
    this = "this request" if explained is subject else f"the span {_quoted(explained)}"
    waits = _waits(explained)
    sentences = [_shares(parts, whole, this, waits)]
    if explained is not subject:
        told = share(explained.duration_ns, subject.duration_ns)
        sentences.insert(
            0,
            f"{_quoted(subject)} has no kernel time breakdown of its own; its longest span that has one"
            f" is {_quoted(explained)}, {told} of it.",
        )
    name, amount = parts[0]
    sentences += [_evidence(name, amount, waits), cause_of(name).advice if name else "", *_reservations(explained)]
    return " ".join(filter(None, sentences))


def _shares(parts: Sequence[tuple[str, int]], whole: int, this: str, waits: dict[str, list[Span]]) -> str:
    clauses = []
    rest = 0
    for index, (name, amount) in enumerate(parts):
        clause = cause_of(name).clause if name else UNKNOWN.clause
        if index == 0:
            of = f"{duration(amount)} of {duration(whole)}"
            clauses.append(
                f"{share(amount, whole)} of {this} ({of}) {clause}{_calls(name, amount, waits.get(name, []))}"
            )
        elif amount * _NAMED >= whole:
            clauses.append(f"{share(amount, whole)} {clause}{_calls(name, amount, waits.get(name, []))}")
        else:
            rest += amount
    if rest:
        clauses.append(f"the other {share(rest, whole)} went to smaller things")
    return clean(", ".join(clauses)) + "."


def _calls(cause: str, whole: int, waits: Sequence[Span]) -> str:
    # Which system call most of all that waiting was in, and who ended it: " (in futex; released by thread 12, gc)".
    times: Counter[str] = Counter()
    for wait in waits:
        times[wait.text(SYSCALL)] += wait.duration_ns
    said = []
    if times:
        call, amount = times.most_common(1)[0]
        # of the whole, not of the waits that have spans: short ones have none, nor those without tracing on
        if call and amount >= _MOST * whole:
            said.append(f"in {call}")
    waker = _waker(waits)
    if waker and cause in _WAKER_TELLS:
        said.append(f"{_WAKER_TELLS[cause]} by {waker}")
    return f" ({'; '.join(said)})" if said else ""


def _waits(span: Span) -> dict[str, list[Span]]:
    # The kernel spans with width below a span, by name; programs that were executed all under "exec".
    found: dict[str, list[Span]] = {}
    for below in span.walk():
        if below.duration_ns and below.kernel:
            name = "exec" if below.text(PROGRAM) == "exec" else below.name
            found.setdefault(name, []).append(below)
    return found


def _evidence(cause: str, whole: int, waits: dict[str, list[Span]]) -> str:
    mine = waits.get(cause, [])
    if not mine:
        return ""
    longest = max(mine, key=lambda wait: wait.duration_ns)
    count = "one wait" if len(mine) == 1 else f"{len(mine):,} waits, the longest of {duration(longest.duration_ns)}"
    seen = sum(wait.duration_ns for wait in mine)
    if seen >= _NEARLY_ALL * whole:
        said = f"The {cause_of(cause).label} time was {count}"
    else:  # spans without tracing on have none
        said = f"Of the {cause_of(cause).label} time, {duration(seen)} has kernel spans: {count}"
    programs = waits.get("exec", [])
    if programs and longest.text(SYSCALL) in _CHILD_WAITS:
        child = max(programs, key=lambda program: program.duration_ns)
        said += f", for its child process {_quoted(child)}"
    return f"{said}."


def _waker(waits: Sequence[Span]) -> str:
    times: Counter[tuple[str, int]] = Counter()
    for wait in waits:
        pid = wait.integer("ebpftrace.sched.waker.pid")
        if pid:
            times[wait.text("ebpftrace.sched.waker.comm"), pid] += wait.duration_ns
    if not times:
        return ""
    (name, pid), amount = times.most_common(1)[0]
    mostly = "" if len(times) == 1 else "mostly " if amount >= _MOST * sum(times.values()) else None
    if mostly is None:
        return f"{len(times)} different threads"
    return f"{mostly}thread {pid}" + (f", {name}" if name else "")


def _reservations(span: Span) -> list[str]:
    # What limits the statement must be said with it.
    found = []
    lost = sum(below.lost_records for below in span.walk())
    if lost:
        found.append(f"{plural(lost, 'kernel record')} of it {'was' if lost == 1 else 'were'} lost,"
                     " so its kernel spans are incomplete.")  # fmt: skip
    if span.error is not None:
        found.append(f"It failed{': ' + clean(span.error) if span.error else ''}.")
    return found


def _longest_with_breakdown(root: Span) -> Span | None:
    spans = [span for span in root.walk() if not span.kernel and span.breakdown]
    return max(spans, key=lambda span: span.duration_ns, default=None)


def _without_breakdown(span: Span) -> str:
    took = f"{_quoted(span)} took {duration(span.duration_ns)}."
    if span.kernel:  # a trace of the agent's
        return " ".join([took, "Kernel spans have no kernel time breakdown.", *_reservations(span)])
    kernel = sum(below.kernel for below in span.walk())
    if kernel:
        return (
            f"{took} It has {plural(kernel, 'kernel span')} but no kernel time breakdown, so the shares are unknown:"
            " the breakdown was switched off, or the spans ended in a process that ebpftrace was not started in."
        )
    return (
        f"{took} It has neither a kernel time breakdown nor kernel spans, so nothing is known about why: ebpftrace was"
        " not started in the process, lacked the privileges (`ebpftrace doctor` tells), or the trace was not sampled."
    )


def _quoted(span: Span) -> str:
    return f"“{clean(span.name) or '(no name)'}”"
