# SPDX-License-Identifier: Apache-2.0
"""What each of the contexts that take turns on a thread has used of it: the breakdown of spans that are suspended."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import weakref
from types import SimpleNamespace

import opentelemetry.context as otel
import pytest
from context_support import Table, armed_table, in_thread
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from ebpftrace.breakdown import BreakdownProcessor
from ebpftrace.context import _publisher, hooks

MS = 1_000_000
PREFIX = "ebpftrace.time."


class Traced:
    """OpenTelemetry with the library's hooks, and a breakdown of all spans."""

    def __init__(self):
        self.processor, self.exporter = BreakdownProcessor(), InMemorySpanExporter()
        self.processor.connect(lambda timeout_s: True, measure=True)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(self.processor)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")

    def span(self, name):
        """A span that is current in the block."""
        return self.tracer.start_as_current_span(name)

    def found(self):
        """The breakdown of each finished span, by its name; `wall` is how long it lasted."""
        return {
            span.name: {
                key.removeprefix(PREFIX): value for key, value in span.attributes.items() if key.startswith(PREFIX)
            }
            | {"wall": span.end_time - span.start_time}
            for span in self.exporter.get_finished_spans()
        }


@pytest.fixture
def traced():
    """The hooks in place, in a table that no kernel writes to: all that a thread does counts as on CPU."""
    before = otel._RUNTIME_CONTEXT
    with armed_table():
        hooks.install(lambda: None)
        yield Traced()
        hooks.uninstall()
    otel._RUNTIME_CONTEXT = before


def spin(milliseconds):
    """Use the CPU."""
    end = time.monotonic_ns() + milliseconds * MS
    while time.monotonic_ns() < end:
        pass


def adds_up(times):
    """Are the parts together the wall time?  "other" is what a busy machine takes before a thread's first span."""
    parts = sum(times.values()) - times["wall"]
    return parts == pytest.approx(times["wall"], rel=0.02, abs=100_000)


def take_turns(found):
    """Did "short" and "long" run, never both at a time?  However long a busy machine let them wait."""
    short, long = found["short"], found["long"]
    assert short["on_cpu"] >= 3 * MS
    assert long["on_cpu"] >= 30 * MS
    assert short["suspended"] >= 20 * MS
    return short["on_cpu"] + long["on_cpu"] <= max(short["wall"], long["wall"]) + MS


def test_two_tasks(traced):
    """Of two tasks that take turns, each has what it ran, and was suspended while the other one did."""

    async def task(name, milliseconds):
        with traced.span(name):
            for _ in range(3):
                spin(milliseconds)
                await asyncio.sleep(0)

    async def both():
        await asyncio.gather(task("short", 1), task("long", 10))

    asyncio.run(both())
    found = traced.found()

    assert all(map(adds_up, found.values()))
    assert take_turns(found)
    assert 2 == traced.processor.stats()["measured"]


def test_never_suspended(traced):
    """A task's span that was not suspended has no suspended time."""

    async def task():
        with traced.span("job"):
            spin(2)

    asyncio.run(task())
    assert "suspended" not in traced.found()["job"]
    assert adds_up(traced.found()["job"])


def test_many_spans(traced):
    """Spans of many tasks, opened and ended in turns, all add up."""

    async def task(number):
        with traced.span(f"outer {number}"):
            await asyncio.sleep(0.001 * (number % 3))
            with traced.span(f"inner {number}"):
                await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def all_of_them():
        await asyncio.gather(*(task(number) for number in range(100)))

    asyncio.run(all_of_them())
    found = traced.found()

    assert 200 == len(found) == traced.processor.stats()["measured"]
    assert [] == [times for times in found.values() if not adds_up(times)]


def test_span_that_ends_in_another_context(traced):
    """A span that a callback starts and another one ends has no breakdown: it was no context's alone."""

    async def main():
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        spans = []
        loop.call_soon(lambda: spans.append(traced.tracer.start_span("job")))
        loop.call_later(0.001, lambda: (spans[0].end(), done.set()))
        await done.wait()

    asyncio.run(main())
    assert {"wall"} == set(traced.found()["job"])
    assert 1 == traced.processor.stats()["shared_thread"]


def test_missed_switch(traced):
    """Where a switch was missed, there is no breakdown rather than a wrong one."""

    async def main():
        with traced.span("job"):
            await asyncio.sleep(0)
            for name in ("watcher", "run"):
                _publisher.unhook(name)
            await asyncio.sleep(0)

    asyncio.run(main())
    assert {"wall"} == set(traced.found()["job"])
    assert 1 == traced.processor.stats()["shared_thread"]


class Value:
    """Something in a context that can be referred to weakly."""


def leave_open(traced, count):
    """Start spans that nobody ends, each in a context of its own; returns a reference to what each context holds."""
    variable, references = contextvars.ContextVar("value"), []

    def start():
        value = Value()
        references.append(weakref.ref(value))
        variable.set(value)
        traced.tracer.start_span("never ended")

    for _ in range(count):
        contextvars.Context().run(start)
    return references


def alive(references):
    """How many of them are there still?"""
    gc.collect()
    return len([reference for reference in references if reference() is not None])


def test_context_is_let_go(traced):
    """The end of its last span lets go of a context."""
    references = []

    def work():
        value = Value()
        references.append(weakref.ref(value))
        contextvars.ContextVar("value").set(value)
        with traced.span("outer"), traced.span("inner"):
            pass

    contextvars.Context().run(work)
    assert 0 == alive(references)


def test_spans_that_never_end(traced):
    """Contexts of spans that nobody ends are kept in bounds, and with the next table not at all."""
    references = leave_open(traced, 1000)
    assert 0 < alive(references) <= 256

    _publisher.disarm()
    assert 0 == alive(references)
    table = Table()
    table.arm()
    with traced.span("another"):
        pass
    assert 0 == alive(references)
    table.close()


def test_threads_after_the_end(traced):
    """A thread that goes on when the library has stopped keeps no contexts of spans that it never ended."""
    left, over = threading.Event(), threading.Event()
    references = []

    def work():
        references.extend(leave_open(traced, 5))
        left.set()
        over.wait()

    thread = threading.Thread(target=work)
    thread.start()
    left.wait()
    before = alive(references)
    _publisher.disarm()
    after = alive(references)
    over.set()
    thread.join()

    assert (5, 0) == (before, after)


class Pool:
    """Ends spans when it goes."""

    def __init__(self, spans):
        self.spans = spans

    def __del__(self):
        for span in reversed(self.spans):
            span.finish()


class Bare:
    """As much of an SDK's span as the publisher needs."""

    def __init__(self, number):
        self._context, self._start_time, self._end_time = SpanContext(1, number, False), time.time_ns(), None
        self._attributes = SimpleNamespace(_dict={}, maxlen=None)

    def finish(self):
        """End; returns what became of the measurement."""
        self._end_time = time.time_ns()
        return _publisher.end(self, lambda: True)


@pytest.mark.parametrize("ended", [1, 127, 129, 255])
def test_spans_that_end_as_a_context_goes(traced, ended):
    """When the oldest of too many open spans are given up, the last of their contexts may go and end others."""
    spans = [Bare(number) for number in range(1, 257)]
    pool = contextvars.ContextVar("pool")

    def first():
        pool.set(Pool(spans[-ended:]))
        _publisher.begin(spans[0])

    contextvars.Context().run(first)
    for each in spans[1:]:
        contextvars.Context().run(_publisher.begin, each)
    youngest = Bare(999)
    _publisher.begin(youngest)

    assert spans[-1]._end_time
    assert _publisher.MEASURED == youngest.finish()


def test_thread_that_ends(traced):
    """The contexts of a thread that ended are let go by the next span of another one."""
    references = in_thread(lambda: leave_open(traced, 5))
    deadline = time.monotonic() + 5
    while alive(references) and time.monotonic() < deadline:
        with traced.span("another"):
            time.sleep(0.001)
    assert 0 == alive(references)


def test_asyncio_within_a_span(traced):
    """A span around a whole event loop has the thread's time, of which nothing was suspended."""
    with traced.span("outer"):
        asyncio.run(asyncio.sleep(0.002))

    assert adds_up(traced.found()["outer"])
    assert "suspended" not in traced.found()["outer"]


def test_greenlets(traced):
    """Greenlets that take turns are measured as tasks are."""
    greenlet = pytest.importorskip("greenlet")

    def body(name, milliseconds):
        with traced.span(name):
            for _ in range(3):
                spin(milliseconds)
                greenlet.getcurrent().parent.switch()

    works = [("short", 1), ("long", 10)]
    ones = [greenlet.greenlet(body) for _ in works]
    for one, work in zip(ones, works, strict=True):
        one.switch(*work)
    while not all(one.dead for one in ones):
        for one in ones:
            one.switch()
    found = traced.found()

    assert all(map(adds_up, found.values()))
    assert take_turns(found)


def test_threads(traced):
    """Each thread's contexts are its own."""

    async def task():
        with traced.span(f"thread {threading.get_native_id()}"):
            spin(1)
            await asyncio.sleep(0.001)

    for _ in range(5):
        in_thread(lambda: asyncio.run(task()))
    assert 5 == traced.processor.stats()["measured"]
    assert all(map(adds_up, traced.found().values()))
