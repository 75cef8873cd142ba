# SPDX-License-Identifier: Apache-2.0
"""gevent and eventlet in place of threads: the library works there, and no kernel span has a wrong parent."""

from __future__ import annotations

import os
import time

import greenlets
import pytest
from harness import App, below, kernel, named, run
from machine import until

LIBRARIES = pytest.mark.parametrize("library", ["gevent", "eventlet"])
ORDERS = pytest.mark.parametrize("order", ["patched first", "started first"])

SHORT_MS, LONG_MS = 2, 30
EDGE_MS = 20  # between both: the kernel counts from when the thread is off the CPU, which is later than when it asked
TURNS = 10


def _batching(app):
    """Have the SDK's batch processor, whose thread is a greenlet by now, export too; returns its exporter."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    app.provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=20, max_export_batch_size=8))
    return exporter


def taking_turns(library, order):
    """Two greenlets take turns; each keeps the thread asleep for a time of its own."""
    if order == "started first":
        import ebpftrace

        ebpftrace.start()
    greenlets.patch(library)
    app = App()
    exporter = _batching(app)

    def task(name, milliseconds):
        with app.traced(name, "sched"):
            for _ in range(TURNS):
                greenlets.block(milliseconds)
                time.sleep(0)

    greenlets.together(library, [lambda: task("short", SHORT_MS), lambda: task("long", LONG_MS)])
    spans = app.spans()
    batched = until(lambda: len(exporter.get_finished_spans()) == len(spans))
    return {"spans": spans, "batched": batched, "stats": app.session.stats()}


@LIBRARIES
@ORDERS
def test_no_wrong_parent(library, order):
    """Greenlets that take turns never get each other's waits, whichever came first, the library or the patching."""
    outcome = run(taking_turns, library, order)
    found = outcome.value
    spans = found["spans"]
    sleeps = [span for span in kernel(spans) if span["name"] == "sleep"]
    short, long = (
        [span["wall"] / 1e6 for span in sleeps if span["parent"] == named(spans, name)["id"]]
        for name in ("short", "long")
    )

    assert short
    assert long
    assert len(sleeps) == len(short) + len(long)
    assert [] == [wall for wall in short if wall >= EDGE_MS]
    assert [] == [wall for wall in long if wall < EDGE_MS]
    assert 0 == found["stats"]["reader"]["errors"]
    assert found["batched"]
    assert "ebpftrace-reader" not in outcome.errors  # it would be threading's, about a thread that it lost sight of


def never_blocked(library):
    """How long a greenlet that only wants to run had to wait at most, while the library idles, flushes and stops."""
    greenlets.patch(library)
    app = App()
    latest, done = [], []

    def tick():
        while not done:
            before = time.monotonic()
            time.sleep(0.001)
            latest.append(time.monotonic() - before)

    def work():
        time.sleep(0.5)
        for _ in range(20):
            with app.traced("work", "sched"):
                greenlets.block(1)
            assert app.session.flush(2)
        done.append(1)

    greenlets.together(library, [tick, work])
    return {"waits": sorted(latest)}


@LIBRARIES
def test_others_run(library):
    """The reader, a greenlet too, holds the others up no longer than a look into the rings takes."""
    waits = run(never_blocked, library).value["waits"]

    assert len(waits) > 100
    assert waits[len(waits) // 2] < 0.02
    assert waits[-1] < 0.5


def outlived():
    """A program that waits for all its greenlets, as gevent.wait() does."""
    greenlets.patch("gevent")
    import gevent

    app = App()
    gevent.spawn(lambda: time.sleep(0.2))
    started = time.monotonic()
    ended = gevent.wait(timeout=20)
    return {"ended": ended, "seconds": time.monotonic() - started, "active": app.session.active}


def test_gevent_waits_for_its_own():
    """gevent.wait(), which waits for all greenlets that have something to wait for, does not wait for ours."""
    found = run(outlived).value

    assert found["active"]
    assert found["ended"]
    assert found["seconds"] < 5


def forked(library):
    """A fork in a program of greenlets: the child has a copy of all of them."""
    greenlets.patch(library)
    import ebpftrace

    app = App()
    with app.traced("before", "sched"):
        greenlets.block(SHORT_MS)
    app.provider.force_flush()
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        app.exporter.clear()
        with app.span("first"):
            pass
        active = until(lambda: ebpftrace.stats()["active"])
        with app.traced("child", "sched"):
            greenlets.block(SHORT_MS)
        spans = app.spans()
        ebpftrace.stop()
        found = len(below(spans, named(spans, "child")))
        os.write(theirs, f"{int(active)} {found} {len(kernel(spans))}".encode())
        os._exit(0)
    os.close(theirs)
    greenlets.together(library, [lambda: time.sleep(0.1)])
    with app.traced("after", "sched"):
        greenlets.block(SHORT_MS)
    os.waitpid(pid, 0)
    return {"child": [int(word) for word in os.read(ours, 100).split()], "spans": app.spans()}


@LIBRARIES
def test_fork(library):
    """A forked child of such a program starts again at its first span, for itself; the parent goes on."""
    found = run(forked, library).value
    active, under, of_kernel = found["child"]

    assert active
    assert under == of_kernel > 0
    for name in ("before", "after"):
        assert "sleep" in {span["name"] for span in below(found["spans"], named(found["spans"], name))}


def at_exit(library, report):
    """A program that ends without stopping anything, with a span just ended."""
    import atexit

    greenlets.patch(library)
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    import ebpftrace

    exporter = InMemorySpanExporter()
    atexit.register(lambda: report([span.name for span in exporter.get_finished_spans()]))  # runs last
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=60_000))
    ebpftrace.start()
    with provider.get_tracer("app").start_as_current_span("last"), ebpftrace.enable("sched"):
        greenlets.block(SHORT_MS)


@LIBRARIES
def test_exit(library):
    """At the end of such a program the last kernel spans are brought in and exported; nothing hangs."""
    outcome = run(at_exit, library, stop=False)

    assert {"last", "sleep"} <= set(outcome.value)
    assert outcome.seconds < 20
