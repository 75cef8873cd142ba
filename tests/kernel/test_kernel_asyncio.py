# SPDX-License-Identifier: Apache-2.0
"""Coroutines: no kernel span ever has a wrong parent; at worst it has none."""

from __future__ import annotations

import asyncio
import time

from harness import App, kernel, named, own, run

SHORT_MS, LONG_MS = 2, 30


def interleaved():
    """Two coroutines take turns; each keeps the thread asleep for a time of its own."""
    app = App()

    async def task(name, milliseconds):
        with app.traced(name, "sched"):
            for _ in range(15):
                time.sleep(milliseconds / 1000)  # noqa: ASYNC251  (a wait that must not be blamed on the other task)
                await asyncio.sleep(0)

    async def main():
        await asyncio.gather(task("short", SHORT_MS), task("long", LONG_MS))

    asyncio.run(main())
    return {"spans": app.spans(), "stats": app.session.stats()["breakdown"]}


def test_no_wrong_parent():
    """Of two coroutines that take turns, neither gets the other one's waits."""
    spans = run(interleaved).value["spans"]
    sleeps = [span for span in kernel(spans) if span["name"] == "sleep"]
    short, long = (
        [span["wall"] / 1e6 for span in sleeps if span["parent"] == named(spans, name)["id"]]
        for name in ("short", "long")
    )

    assert short
    assert len(sleeps) == len(short) + len(long)
    assert [] == [wall for wall in short if wall >= LONG_MS]
    assert [] == [wall for wall in long if wall < LONG_MS]


def test_suspended_spans():
    """A coroutine's span that was suspended has no breakdown, for its thread's time was not its own; it is counted."""
    found = run(interleaved).value

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
