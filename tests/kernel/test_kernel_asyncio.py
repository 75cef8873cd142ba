# SPDX-License-Identifier: Apache-2.0
"""Coroutines: no kernel span ever has a wrong parent; at worst it has none."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest
from harness import App, kernel, named, own, run

SHORT_MS, LONG_MS = 2, 30
EDGE_MS = 20  # between both: the kernel counts from when the thread is off the CPU, which is later than when it asked
MS = 1_000_000


async def _take_turns(app):
    """Two coroutines take turns; each keeps the thread asleep for a time of its own."""

    async def task(name, milliseconds):
        with app.traced(name, "sched"):
            for _ in range(15):
                time.sleep(milliseconds / 1000)  # noqa: ASYNC251  (a wait that must not be blamed on the other task)
                await asyncio.sleep(0)

    await asyncio.gather(task("short", SHORT_MS), task("long", LONG_MS))


def interleaved(loop, hooks):
    """Coroutines on a loop."""
    app = App(context_hooks=[hooks])
    if loop == "uvloop":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_take_turns(app))
    elif loop == "eager":
        with asyncio.Runner() as runner:
            runner.get_loop().set_task_factory(asyncio.eager_task_factory)
            runner.run(_take_turns(app))
    else:
        asyncio.run(_take_turns(app))
    return {"spans": app.spans(), "stats": app.session.stats()["breakdown"]}


def greenlets(loop, hooks):
    """The same by greenlets, of gevent or switched by hand."""
    app = App(context_hooks=[hooks])
    pause = None

    def task(name, milliseconds):
        with app.traced(name, "sched"):
            for _ in range(15):
                time.sleep(milliseconds / 1000)
                pause()

    works = [("short", SHORT_MS), ("long", LONG_MS)]
    if loop == "gevent":
        import gevent

        pause = gevent.sleep
        gevent.joinall([gevent.spawn(task, *work) for work in works])
    else:
        import greenlet

        main = greenlet.getcurrent()
        pause = main.switch
        tasks = [greenlet.greenlet(task) for _ in works]
        for one, work in zip(tasks, works, strict=True):
            one.switch(*work)
        while not all(one.dead for one in tasks):
            for one in tasks:
                one.switch()
    return {"spans": app.spans(), "stats": app.session.stats()["breakdown"]}


def waits(spans):
    """How long the waits were under the short and under the long span, in ms; every wait is under one of them."""
    sleeps = [span for span in kernel(spans) if span["name"] == "sleep"]
    found = [
        [span["wall"] / 1e6 for span in sleeps if span["parent"] == named(spans, name)["id"]]
        for name in ("short", "long")
    ]
    assert len(sleeps) == len(found[0]) + len(found[1])
    return found


LOOPS = [
    (interleaved, "asyncio"),
    (interleaved, "uvloop"),
    pytest.param(
        interleaved, "eager", marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="no eager tasks before 3.12")
    ),
    (greenlets, "by hand"),
    (greenlets, "gevent"),
]


@pytest.mark.parametrize(("work", "loop"), LOOPS)
def test_right_parent(work, loop):
    """Of two tasks that take turns, each gets all of its own waits."""
    short, long = waits(run(work, loop, "auto").value["spans"])

    assert (15, 15) == (len(short), len(long))
    assert [] == [wall for wall in short if wall >= EDGE_MS]
    assert [] == [wall for wall in long if wall < EDGE_MS]


@pytest.mark.parametrize(("work", "loop"), LOOPS)
def test_no_wrong_parent(work, loop):
    """Without hooks, waits before the first switch are there, and none is under the other one's span."""
    short, long = waits(run(work, loop, "none").value["spans"])

    assert short
    assert [] == [wall for wall in short if wall >= EDGE_MS]
    assert [] == [wall for wall in long if wall < EDGE_MS]


@pytest.mark.parametrize(("work", "loop"), LOOPS)
def test_breakdown(work, loop):
    """A span that is suspended has its own times alone, and how long it was suspended; they add up to its wall time."""
    found = run(work, loop, "auto").value
    spans = found["spans"]
    short, long = named(spans, "short"), named(spans, "long")

    for span in (short, long):
        assert 0.98 * span["wall"] <= sum(span["times"].values()) <= 1.02 * span["wall"], span
    # a tenth less: on a busy machine a sleep begins or ends with a wait for a CPU
    assert 0.9 * 15 * SHORT_MS * MS <= short["times"]["sleep"] < 15 * LONG_MS * MS
    assert 0.9 * 15 * LONG_MS * MS <= long["times"]["sleep"]
    assert 0.9 * 14 * LONG_MS * MS <= short["times"]["suspended"]
    assert 0 == found["stats"]["shared_thread"]


def families():
    """A task with a span in its span, which waits for a task of its own, twice."""
    app = App()

    async def child():
        with app.span("child"):
            time.sleep(0.02)  # noqa: ASYNC251  (time that is to be found again)

    async def main():
        with app.span("parent"):
            with app.span("inner"):
                time.sleep(0.01)  # noqa: ASYNC251
                await asyncio.sleep(0.03)
            await asyncio.create_task(child())

    asyncio.run(main())
    return app.spans()


def test_nested_breakdown():
    """A span's times include those of spans within it in the same context; other tasks' are its suspended time."""
    spans = run(families).value
    parent, inner, child = (named(spans, name) for name in ("parent", "inner", "child"))

    assert 10 * MS <= inner["times"]["sleep"] < 20 * MS
    assert 10 * MS <= parent["times"]["sleep"] < 20 * MS
    assert 29 * MS <= inner["times"]["suspended"] < inner["wall"]
    assert 49 * MS <= parent["times"]["suspended"] < parent["wall"]
    assert 20 * MS <= child["times"]["sleep"]
    assert "suspended" not in child["times"]


def test_suspended_spans_without_hooks():
    """Where the switches are not known, a suspended span has no breakdown; it is counted."""
    found = run(interleaved, "asyncio", "none").value

    assert [{}, {}] == [span["times"] for span in own(found["spans"])]
    assert 2 == found["stats"]["shared_thread"]


def uninterrupted():
    """A coroutine that never lets go in its span."""
    app = App()

    async def main():
        with app.traced("job", "sched"):
            time.sleep(0.02)  # noqa: ASYNC251  (as above)

    asyncio.run(main())
    return app.spans()


def test_coroutine_that_is_not_suspended():
    """A span during which its coroutine was never suspended is like any other: kernel spans and a breakdown."""
    spans = run(uninterrupted).value
    job = named(spans, "job")

    assert "sleep" in {span["name"] for span in kernel(spans) if span["parent"] == job["id"]}
    assert job["times"]["sleep"] >= 19_000_000


def executor():
    """Work that a coroutine gives to a thread."""
    app = App()

    def work():
        with app.traced("in a thread", "sched"):
            time.sleep(0.02)

    async def main():
        with app.span("request"):
            await asyncio.to_thread(work)

    asyncio.run(main())
    return app.spans()


def test_to_thread():
    """What asyncio.to_thread() runs is a thread's work: it is below the coroutine's span, and it is traced."""
    spans = run(executor).value
    job = named(spans, "in a thread")

    assert named(spans, "request")["id"] == job["parent"]
    assert "sleep" in {span["name"] for span in kernel(spans) if span["parent"] == job["id"]}
    assert job["times"]["sleep"] >= 19_000_000


def other_tasks():
    """A traced coroutine waits while one without any span keeps the thread."""
    app = App()

    async def stranger():
        for _ in range(10):
            time.sleep(0.005)  # noqa: ASYNC251  (as above)
            await asyncio.sleep(0)

    async def traced():
        with app.traced("job", "sched"):
            await asyncio.sleep(0.03)

    async def main():
        await asyncio.gather(traced(), stranger())

    asyncio.run(main())
    return app.spans()


def test_stranger():
    """While a traced coroutine is suspended, what others do on its thread is not under its span."""
    spans = run(other_tasks).value

    assert [] == [span for span in kernel(spans) if span["name"] == "sleep"]
