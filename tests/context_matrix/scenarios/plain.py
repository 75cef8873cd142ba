# SPDX-License-Identifier: Apache-2.0
"""Code without an event loop: threads, executors, contexts by hand, generators, signals."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from oracle import check, span

from scenarios import Collector

SCENARIOS = scenario = Collector()


def levels(depth):
    """Spans in spans, checked on the way in and on the way out."""
    check()
    if depth:
        with span(f"level {depth}"):
            check()
            levels(depth - 1)
            check()
    check()


@scenario("threads", quick=True)
def nested_spans():
    for _ in range(10):
        levels(5)


@scenario("threads", quick=True)
def exceptions():
    for _ in range(20):
        with contextlib.suppress(ValueError), span("fails"):
            check()
            int("x")
        check()


@scenario("threads", quick=True)
def threads_at_once():
    def work():
        for _ in range(10):
            levels(2)
            time.sleep(0.0005)

    workers = [threading.Thread(target=work) for _ in range(8)]
    with span("starts threads"):
        for worker in workers:
            worker.start()
        check()
        for worker in workers:
            worker.join()
            check()


@scenario("threads", quick=True)
def short_threads():
    """Threads that end at once: their ids and slots are used again."""
    for _ in range(50):
        worker = threading.Thread(target=levels, args=(1,))
        worker.start()
        worker.join()


@scenario("threads", quick=True)
def remote_parents():
    from opentelemetry import trace

    for number in range(1, 20):
        parent = trace.SpanContext(number, number, is_remote=True, trace_flags=trace.TraceFlags(number % 2))
        with trace.use_span(trace.NonRecordingSpan(parent)):
            check()
            with span("local"):
                check()
            check()
        check()


def _executor():
    with ThreadPoolExecutor(4) as pool, span("submits"):
        for done in [pool.submit(levels, 2) for _ in range(20)]:
            check()
            done.result()
        list(pool.map(levels, [1] * 20))
        check()


@scenario("executors", quick=True)
def plain():
    """Nothing carries the context into the threads: there is none in them."""
    _executor()


@scenario("executors", quick=True, needs=("opentelemetry.instrumentation.threading",))
def instrumented():
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor

    ThreadingInstrumentor().instrument()
    try:
        _executor()
        with span("starts"):
            worker = threading.Thread(target=levels, args=(2,))
            timer = threading.Timer(0.001, levels, (2,))
            worker.start()
            timer.start()
            check()
            worker.join()
            timer.join()
    finally:
        ThreadingInstrumentor().uninstrument()


@scenario("contexts", quick=True)
def context_run():
    def inside(depth):
        check()
        with span("inside"):
            check()
            if depth:
                contextvars.copy_context().run(inside, depth - 1)
            check()
        check()

    empty = contextvars.Context()
    for _ in range(10):
        with span("outside"):
            contextvars.copy_context().run(inside, 3)
            check()
            empty.run(inside, 1)
            check()


@scenario("contexts", quick=True)
def context_run_raises():
    def fails():
        check()
        raise ValueError

    with span("outside"):
        for _ in range(20):
            for context in (contextvars.copy_context(), contextvars.Context()):
                try:
                    context.run(fails)
                except ValueError:
                    check()


@scenario("contexts", quick=True)
def context_kept_attached():
    """A span left attached in a context is current whenever that context is entered again."""
    from opentelemetry import context, trace

    held = [contextvars.Context() for _ in range(4)]
    for number, each in enumerate(held, 1):
        parent = trace.NonRecordingSpan(
            trace.SpanContext(number, number, is_remote=False, trace_flags=trace.TraceFlags(1))
        )
        each.run(context.attach, trace.set_span_in_context(parent))
    for _ in range(10):
        for each in held:
            each.run(check)
            check()
            with span("between"):
                each.run(levels, 1)
                check()


@scenario("generators", quick=True)
def interleaved():
    """A generator has no context of its own: a span that it opens is current for its caller too."""

    def spans():
        for _ in range(5):
            with span("in a generator"):
                check()
                yield
                check()
            check()

    logging.getLogger("opentelemetry.context").setLevel(logging.CRITICAL)  # closed out of order, as they are here
    for _ in zip(spans(), spans(), strict=True):
        check()
        with span("caller"):
            check()
    check()


@scenario("signals", quick=True)
def signal_handlers():
    """A handler runs between any two steps of the code below it."""
    left = [40]

    def handle(number, frame):
        check()
        with span("handler"):
            check()
        check()
        left[0] -= 1
        signal.setitimer(signal.ITIMER_REAL, 0.0011 if left[0] else 0)  # after a handler, never within

    previous = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    try:
        while left[0]:
            levels(1)
            time.sleep(0.0007)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
