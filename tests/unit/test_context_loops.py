# SPDX-License-Identifier: Apache-2.0
"""Event loops and greenlets, whose tasks take turns on one thread."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from context_support import in_thread
from switches_support import OF_ENTER, OF_RUN, Checks, following, span

# --- event loops -----------------------------------------------------------------------------------------------------


async def tasks(app, checks):
    """Tasks that take turns, each in spans of its own, and callbacks of the loop."""
    loop = asyncio.get_running_loop()

    async def work(number):
        for depth in range(3):
            with span(app.runtime, number * 10 + depth):
                checks.look()
                await asyncio.sleep(0)
                checks.look()
                await asyncio.to_thread(checks.look)
                checks.look()

    with span(app.runtime, 1):
        loop.call_soon(checks.look)
        loop.call_later(0.001, checks.look)
        await asyncio.gather(*(work(number) for number in range(1, 6)))
        checks.look()
        async with asyncio.TaskGroup() as group:
            for number in range(6, 9):
                group.create_task(work(number))
        checks.look()


def asyncio_tasks(app):
    """Run them on asyncio's own loop."""
    checks = Checks()
    with span(app.runtime, 99):
        asyncio.run(tasks(app, checks))
        checks.look()
    return checks


def uvloop_tasks(app):
    """Run them on uvloop."""
    import uvloop

    checks = Checks()
    with span(app.runtime, 99), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(tasks(app, checks))
        checks.look()
    return checks


def test_asyncio(table):
    """Tasks, their threads and callbacks of asyncio's loop are always published right."""
    with following(OF_RUN) as app:
        checks = asyncio_tasks(app)

    assert (0, 0) == (checks.wrong, checks.unknown)
    assert checks.right > 90


def test_uvloop(table):
    """The same on uvloop, which enters contexts by itself."""
    pytest.importorskip("uvloop")
    with following(*{OF_RUN, OF_ENTER}) as app:
        checks = uvloop_tasks(app)

    assert (0, 0) == (checks.wrong, checks.unknown)
    assert checks.right > 90


@pytest.mark.parametrize("how", [asyncio_tasks, uvloop_tasks])
def test_without_hooks(table, how):
    """Without any hook much is unknown, and nothing is wrong."""
    pytest.importorskip("uvloop")
    with following() as app:
        checks = how(app)

    assert 0 == checks.wrong
    assert checks.unknown > 10


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks before 3.12")
@pytest.mark.parametrize("hooked", [True, False])
def test_eager_tasks(table, hooked):
    """A task that runs its first step in the middle of its parent's leaves the parent's span published."""
    checks = Checks()

    async def child(app):
        with span(app.runtime, 2):
            checks.look()
            await asyncio.sleep(0)
            checks.look()

    async def parent(app):
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        with span(app.runtime, 1):
            children = [asyncio.create_task(child(app)) for _ in range(3)]
            checks.look()
            await asyncio.gather(*children)
            checks.look()

    with following(*({OF_RUN, OF_ENTER} if hooked else ())) as app:
        asyncio.run(parent(app))

    assert 0 == checks.wrong
    assert hooked == (checks.unknown == 0)


LATE = """
import sys
sys.path[:0] = {path!r}
import asyncio
from context_support import armed_table
from ebpftrace.context import _publisher
from switches_support import following, span, Checks

checks = Checks()
with armed_table(), following("run", "enter", "greenlet") as app, span(app.runtime, 1):
    {body}
print(checks.wrong, checks.unknown, checks.right, _publisher.counters()["errors"])
"""


def late(body):
    """In a process of its own, a library is imported when the hooks are in place already."""
    code = LATE.format(path=[str(Path(__file__).parent)], body=body)
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False)
    assert "" == done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="a watcher knows all libraries")
def test_library_imported_later():
    """A library that comes after the hooks is hooked at the first attach that it hid a switch from."""
    pytest.importorskip("uvloop")
    wrong, unknown, right, errors = late(
        """
    import uvloop
    from test_context_loops import tasks
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(tasks(app, checks))
    """
    )

    assert (0, 0) == (wrong, errors)
    assert unknown <= 2
    assert right > 90


# --- greenlets -------------------------------------------------------------------------------------------------------


def greenlets(app, checks, count=4):
    """Greenlets that take turns, each in spans of its own."""
    greenlet = pytest.importorskip("greenlet")

    def body(number):
        for turn in range(5):
            with span(app.runtime, 10 * number + turn):
                checks.look()
                greenlet.getcurrent().parent.switch()
                checks.look()

    with span(app.runtime, 1):
        all_of_them = [greenlet.greenlet(body) for _ in range(count)]
        for number, one in enumerate(all_of_them):
            one.gr_context = contextvars.copy_context()
            one.switch(number + 1)
            checks.look()
        while alive := [one for one in all_of_them if not one.dead]:
            for one in alive:
                one.switch()
                checks.look()


@pytest.mark.parametrize("hooked", [True, False])
def test_greenlets(table, hooked):
    """A switch of greenlets is followed; without the hook what is published is unknown then, not wrong."""
    checks = Checks()
    with following(*(["greenlet"] if hooked else [])) as app:
        greenlets(app, checks)

    assert 0 == checks.wrong
    assert hooked == (checks.unknown == 0)
    assert checks.right >= 20


def test_greenlets_of_another_thread(table):
    """Each thread's greenlets are followed from its first span on."""
    checks = Checks()
    with following("greenlet") as app:
        in_thread(lambda: greenlets(app, checks))

    assert (0, 0) == (checks.wrong, checks.unknown)


def test_greenlet_tracer_of_another(table):
    """A tracer that was there goes on being called, and is there alone afterwards."""
    greenlet = pytest.importorskip("greenlet")
    events = []

    def theirs(event, args):
        events.append(event)

    greenlet.settrace(theirs)
    try:
        checks = Checks()
        with following("greenlet") as app:
            greenlets(app, checks, count=1)
            assert greenlet.gettrace() is not theirs
        assert greenlet.gettrace() is theirs
    finally:
        greenlet.settrace(None)
    assert 0 == checks.wrong + checks.unknown
    assert {"switch"} == set(events)


def test_tracers_do_not_pile_up(table):
    """Each new installation takes the place of the one before, also in a thread that saw no end of that one."""
    greenlet = pytest.importorskip("greenlet")
    steps, done = [threading.Event() for _ in range(3)], [threading.Event() for _ in range(3)]
    depths = []

    def work():
        for step, end in zip(steps, done, strict=True):
            step.wait()
            with span(app.runtime, 1):
                tracer, depth = greenlet.gettrace(), 0
                while tracer is not None:
                    [tracer] = gc.get_referents(tracer) or [None]
                    depth += 1
                depths.append(depth)
            end.set()

    thread = threading.Thread(target=work)
    thread.start()
    for step, end in zip(steps, done, strict=True):
        with following("greenlet") as app:
            step.set()
            end.wait()
    thread.join()
    assert [1, 1, 1] == depths


def test_greenlet_tracer_of_a_thread_that_goes_on(table):
    """After leaving, the tracer of another thread takes itself off at that thread's next switch."""
    greenlet = pytest.importorskip("greenlet")
    traced, left, found = threading.Event(), threading.Event(), []

    def work():
        with following_thread(app, 1):
            traced.set()
            left.wait()
        found.append(type(greenlet.gettrace()).__name__)
        greenlet.greenlet(int).switch()
        found.append(greenlet.gettrace())

    with following("greenlet") as app:
        thread = threading.Thread(target=work)
        thread.start()
        traced.wait()
    left.set()
    thread.join()
    assert ["GreenletTracer", None] == found


def following_thread(app, number):
    """A span in a thread."""
    return span(app.runtime, number)


def mappings():
    """Which parts of libraries are writable."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split()[0:2] + line.split()[5:] for line in lines if ".so" in line]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="a watcher takes the place of replaced imports")
def test_imports_are_restored(table):
    """Leaving takes the hooks out of libraries, and their pages are as protected as before."""
    pytest.importorskip("uvloop")
    before = mappings()
    with following("run", "enter") as app:
        followed = uvloop_tasks(app)
        assert sorted(before) == sorted(mappings())
    with following("run") as app:
        unfollowed = uvloop_tasks(app)
    assert (0, 0) == (followed.wrong, followed.unknown)
    assert unfollowed.wrong == 0
    assert unfollowed.unknown > 10
