# SPDX-License-Identifier: Apache-2.0
"""What a trace says about its slowest request, in words."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ebpftrace.viewer.causes import UNKNOWN, cause_of
from ebpftrace.viewer.labels import breakdown_parts, plural, whole_of
from ebpftrace.viewer.rows import SYSCALL
from ebpftrace.viewer.text import clean, duration, share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ebpftrace.viewer.trace import Span, Trace

_NAMED = 20  # parts below this fraction of the whole are only summed up
_MOST = 0.5  # a system call or waker is named when it accounts for this much of its cause
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
    sentences = [_shares(explained, parts, whole, this)]
    if explained is not subject:
        told = share(explained.duration_ns, subject.duration_ns)
        sentences.insert(0, f"{_quoted(subject)} has no kernel time breakdown of its own; its longest span that has one"
                         f" is {_quoted(explained)}, {told} of it.")  # fmt: skip
    name = parts[0][0]
    evidence = _evidence(explained, name)
    if evidence:
        sentences.append(evidence)
    advice = cause_of(name).advice if name else ""
    if advice:
        sentences.append(advice)
    sentences += _reservations(explained)
    return " ".join(sentences)


def _shares(span: Span, parts: Sequence[tuple[str, int]], whole: int, this: str) -> str:
    clauses = []
    rest = 0
    for index, (name, amount) in enumerate(parts):
        clause = cause_of(name).clause if name else UNKNOWN.clause
        if index == 0:
            of = f"{duration(amount)} of {duration(whole)}"
            clauses.append(f"{share(amount, whole)} of {this} ({of}) {clause}{_calls(span, name)}")
        elif amount * _NAMED >= whole:
            clauses.append(f"{share(amount, whole)} {clause}{_calls(span, name)}")
        else:
            rest += amount
    if rest:
        clauses.append(f"the other {share(rest, whole)} went to smaller things")
    return clean(", ".join(clauses)) + "."


def _calls(span: Span, cause: str) -> str:
    # Which system call most of a wait was in: " (fsync)".
    times = _weighed(span, cause, SYSCALL)
    total = sum(times.values())
    if not total:
        return ""
    call, amount = times.most_common(1)[0]
    return f" (in {call})" if call and amount >= _MOST * total else ""


def _weighed(span: Span, cause: str, key: str) -> Counter[str]:
    times: Counter[str] = Counter()
    for below in span.walk():
        if below.kernel and below.name == cause:
            value = below.attributes.get(key)
            times["" if value is None else str(value)] += below.duration_ns
    return times


def _evidence(span: Span, cause: str) -> str:
    waits = [below for below in span.walk() if below.kernel and below.name == cause and below.duration_ns]
    if not waits:
        return ""
    longest = max(waits, key=lambda wait: wait.duration_ns)
    said = []
    if len(waits) > 1:
        said.append(f"It did so {len(waits):,} times, the longest for {duration(longest.duration_ns)}")
    waker = _waker(waits) if cause in ("lock", "network", "other") else ""
    if waker and cause == "lock":
        said.append(f"{'the lock was' if said else 'The lock was'} released by {waker}")
    elif waker:
        said.append(f"{'it was' if said else 'It was'} woken by {waker}")
    if longest.text(SYSCALL) in _CHILD_WAITS:
        programs = [below for below in span.walk() if below.kernel and below.name.startswith("exec ")]
        if programs:
            child = max(programs, key=lambda program: program.duration_ns)
            said.append(f"{'it' if said else 'It'} waited for its child process {_quoted(child)}")
    return clean(", ".join(said)) + "." if said else ""


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
    return f"{mostly}thread {pid}" + (f" ({name})" if name else "")


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
