# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest
from context_support import Table
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ebpftrace.breakdown import BreakdownProcessor
from ebpftrace.context import _publisher

MS = 1_000_000
ON_CPU, SLEEP, LOCK = 0, 6, 5


@pytest.fixture
def table():
    """An armed table."""
    table = Table()
    table.arm()
    yield table
    _publisher.disarm()
    table.close()


class Traced:
    """A provider with the processor in front of an exporter."""

    def __init__(self, **settings):
        self.processor, self.exporter = BreakdownProcessor(), InMemorySpanExporter()
        self.processor.connect(lambda timeout_s: True, measure=True)
        self.provider = TracerProvider(shutdown_on_exit=False, **settings)
        self.provider.add_span_processor(self.processor)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def times(self):
        """The breakdown of each exported span, without its prefix."""
        prefix = "ebpftrace.time."
        return [
            {key.removeprefix(prefix): value for key, value in span.attributes.items() if key.startswith(prefix)}
            for span in self.exporter.get_finished_spans()
        ]


@pytest.fixture
def traced(table):
    """A provider, measured."""
    return Traced()


def spin(milliseconds):
    """Use the CPU."""
    end = time.monotonic_ns() + milliseconds * MS
    while time.monotonic_ns() < end:
        pass


def times(**causes):
    """A line's times."""
    found = [0] * 9
    for name, value in causes.items():
        found[{"on_cpu": ON_CPU, "sleep": SLEEP, "lock": LOCK}[name]] = value
    return found


def test_never_switched_out(traced):
    """A thread that nobody switched out spent the span on the CPU, all of it."""
    with traced.tracer.start_as_current_span("first"):  # from here on its thread has a slot
        pass
    with traced.tracer.start_as_current_span("job"):
        spin(5)
    span = traced.exporter.get_finished_spans()[-1]

    assert {"on_cpu": pytest.approx(span.end_time - span.start_time, abs=100_000)} == traced.times()[-1]
    assert 2 == traced.processor.stats()["measured"]


def test_switched_out(table, traced):
    """The differences of the kernel's account are the parts; those that are zero are left out; they add up."""
    with traced.tracer.start_as_current_span("warm"):
        pass
    began = time.monotonic_ns()
    table.switched(on_since=began, times=times(on_cpu=50 * MS, sleep=7 * MS))
    with traced.tracer.start_as_current_span("job"):
        spin(10)
        # it ran for 1 ms, slept for 5, and runs since
        table.switched(on_since=began + 6 * MS, times=times(on_cpu=51 * MS, sleep=12 * MS))
    span = traced.exporter.get_finished_spans()[-1]
    found = traced.times()[-1]

    assert {"on_cpu", "sleep"} == set(found)
    assert 5 * MS == found["sleep"]
    assert span.end_time - span.start_time == pytest.approx(sum(found.values()), abs=100_000)


def test_lost_records(table, traced):
    """A span during which records were lost says how many."""
    with traced.tracer.start_as_current_span("warm"):
        pass
    table.switched(on_since=time.monotonic_ns(), times=times(), lost=3)
    with traced.tracer.start_as_current_span("job"):
        table.switched(on_since=time.monotonic_ns(), times=times(), lost=10)

    assert 7 == traced.exporter.get_finished_spans()[-1].attributes["ebpftrace.lost_records"]


def test_another_thread(traced):
    """A span that ends on another thread than it began on gets nothing, and is counted."""
    span = traced.tracer.start_span("job")
    thread = threading.Thread(target=span.end)
    thread.start()
    thread.join()

    assert [{}] == traced.times()
    assert 1 == traced.processor.stats()["another_thread"]


def test_event_loop(traced):
    """A coroutine's span that was suspended gets nothing, and is counted; one that was not is measured."""

    async def task():
        with traced.tracer.start_as_current_span("suspended"):
            await asyncio.sleep(0)
        with traced.tracer.start_as_current_span("not suspended"):
            pass

    asyncio.run(task())

    assert [set(), {"on_cpu"}] == [set(found) for found in traced.times()]
    assert (1, 1) == tuple(traced.processor.stats()[name] for name in ("shared_thread", "measured"))


def test_loop_inside_a_span(traced):
    """A span around a whole event loop has its thread's time, whatever ran there."""
    with traced.tracer.start_as_current_span("around"):
        asyncio.run(asyncio.sleep(0))

    assert 1 == traced.processor.stats()["measured"]
    assert traced.times()[0]["on_cpu"]


def test_no_room(table):
    """Attributes that the application's limits leave no room for are not forced in; the span is counted."""
    traced = Traced(span_limits=SpanLimits(max_span_attributes=2))
    with traced.tracer.start_as_current_span("job", attributes={"a": 1, "b": 2}):
        pass
    [span] = traced.exporter.get_finished_spans()

    assert {"a": 1, "b": 2} == dict(span.attributes)
    assert 1 == traced.processor.stats()["no_room"]


def test_application_attributes(traced):
    """The application's own attributes, set before and during the span, stay."""
    with traced.tracer.start_as_current_span("job", attributes={"a": 1}) as span:
        span.set_attribute("b", "2")
    [span] = traced.exporter.get_finished_spans()

    assert (1, "2") == (span.attributes["a"], span.attributes["b"])
    assert "ebpftrace.time.on_cpu" in span.attributes


def test_explicit_times(traced):
    """A span with times of the application's own raises nothing, and has no more time than it says."""
    now = time.time_ns()
    traced.tracer.start_span("past", start_time=now - 60_000 * MS).end(end_time=now - 59_000 * MS)
    traced.tracer.start_span("future", start_time=now + 60_000 * MS).end(end_time=now + 61_000 * MS)

    assert 2 == len(traced.times())
    for found in traced.times():
        assert sum(found.values()) <= 1000 * MS + MS
    assert 0 == traced.processor.stats()["errors"]


def test_nested_spans(traced):
    """Spans in spans are measured each for itself."""
    with traced.tracer.start_as_current_span("outer"):
        spin(2)
        with traced.tracer.start_as_current_span("inner"):
            spin(2)
    inner, outer = traced.times()

    assert 2 * MS <= inner["on_cpu"] < outer["on_cpu"]


def test_disconnected(traced):
    """A processor that is connected to no library does nothing."""
    traced.processor.disconnect()
    with traced.tracer.start_as_current_span("job"):
        pass

    assert [{}] == traced.times()
    assert traced.provider.force_flush()
    assert {0} == set(traced.processor.stats().values())


def test_disconnected_meanwhile(traced):
    """A span that was begun with the library and ends without it is exported as it is."""
    with traced.tracer.start_as_current_span("job"):
        traced.processor.disconnect()
        _publisher.disarm()

    assert [{}] == traced.times()


def test_without_a_table():
    """Without a table nothing is measured and nothing fails."""
    traced = Traced()
    with traced.tracer.start_as_current_span("job"):
        pass

    assert [{}] == traced.times()
    assert 0 == traced.processor.stats()["errors"]


def test_no_span_at_all(traced, caplog):
    """What is no span raises nothing into the application: one warning, later ones are only counted."""
    with caplog.at_level(logging.WARNING, "ebpftrace"):
        for _ in range(3):
            traced.processor.on_start(object())
            traced.processor.on_end(object())

    assert 6 == traced.processor.stats()["errors"]
    assert 1 == len(caplog.records)


def test_flush():
    """Flushing the provider, and shutting it down, brings in the kernel's spans first."""
    asked = []
    processor = BreakdownProcessor()
    processor.connect(lambda timeout_s: asked.append(timeout_s) or True, measure=False)

    assert processor.force_flush(1500)
    assert processor.force_flush()
    processor.shutdown()
    assert [0.375, 2.0, 1.0] == asked


def test_flush_in_vain():
    """When the kernel's spans do not come in time, the provider flushes its other processors all the same."""
    traced = Traced()
    traced.processor.connect(lambda timeout_s: False, measure=False)
    flushed = []
    traced.provider._active_span_processor._span_processors[1].force_flush = flushed.append

    assert traced.processor.force_flush(1000)
    traced.provider.force_flush(1000)
    assert 1 == len(flushed)
