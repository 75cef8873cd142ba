# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import threading

from ebpftrace.decoders.lookups import Cache, Snapshot


class Now:
    """A time that tests set."""

    def __init__(self):
        self.seconds = 0.0

    def read(self):
        """Tell it."""
        return self.seconds


class World(dict):
    """What is looked up, with a list of the questions."""

    def __init__(self, **answers):
        super().__init__(**answers)
        self.asked = []

    def ask(self, key):
        """Look it up."""
        self.asked.append(key)
        return self.get(key)


def test_answers_are_remembered():
    """A found answer counts for one time, a missing one for another."""
    now, world = Now(), World(a=1)
    cache = Cache(world.ask, found_s=10, missing_s=1, now=now.read)
    assert (1, 1, None, None) == (cache.get("a"), cache.get("a"), cache.get("b"), cache.get("b"))
    assert ["a", "b"] == world.asked

    now.seconds = 1
    world["b"] = 2
    assert (1, 2) == (cache.get("a"), cache.get("b"))
    assert ["a", "b", "b"] == world.asked

    now.seconds = 10
    world["a"] = 3
    assert 3 == cache.get("a")


def test_what_is_gone_stays_known():
    """Records are older than look-ups: a name that is gone still counts, until there is another one."""
    now, world = Now(), World(a=1)
    cache = Cache(world.ask, found_s=10, missing_s=1, now=now.read)
    cache.get("a")
    now.seconds = 11
    del world["a"]
    assert 1 == cache.get("a")

    now.seconds = 13
    world["a"] = 2
    assert 2 == cache.get("a")


def test_cache_is_bounded():
    """However many keys are asked for, only the latest stay."""
    world = World()
    cache = Cache(world.ask, found_s=10, size=100)
    for key in range(1000):
        cache.get(key)
    assert 100 == len(cache)

    cache.get(999)
    cache.get(0)
    assert [999, 0] == world.asked[-2:]


def test_snapshot_is_not_read_for_every_miss():
    """A table is read again after a pause, and after a longer one when it is slow to read."""
    now, loads = Now(), []

    def load():
        loads.append(now.seconds)
        now.seconds += 0.1
        return {"a": len(loads)}

    snapshot = Snapshot(load, now=now.read)
    assert (1, None, None) == (snapshot.get("a"), snapshot.get("b"), snapshot.get("c"))

    now.seconds = 2.0
    assert (1, [0.0]) == (snapshot.get("a"), loads)
    now.seconds = 2.2
    assert (2, [0.0, 2.2]) == (snapshot.get("a"), loads)


def test_many_threads():
    """Threads that ask at once all get the answer, and a table is read by one of them."""
    loads = []

    def load():
        loads.append(1)
        return {n: n for n in range(50)}

    cache = Cache(Snapshot(load).get, found_s=10, size=40)
    wrong = []

    def ask():
        for _ in range(20):
            wrong.extend(n for n in range(50) if cache.get(n) != n)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ([], 1) == (wrong, len(loads))


def test_fork_while_another_thread_looks_up():
    """A child does not wait for a thread that only its parent has."""
    inside, done = threading.Event(), threading.Event()

    def load():
        if not done.is_set() and threading.current_thread() is reader:
            inside.set()
            done.wait(10)
        return {"a": 1}

    snapshot = Snapshot(load)
    reader = threading.Thread(target=snapshot.get, args=("a",))
    reader.start()
    inside.wait(10)
    child = os.fork()
    if not child:
        os._exit(0 if snapshot.get("a") == 1 else 1)
    done.set()
    reader.join()

    assert 0 == os.waitpid(child, 0)[1]
