# SPDX-License-Identifier: Apache-2.0
"""`sched_migrate`: a traced thread is given another CPU."""

from __future__ import annotations

import os
import threading
import time

import pytest
import workloads
from harness import App, below, kernel, named, run


def moves(times, traced):
    """Move this thread back and forth between two CPUs; says where it was meant to be."""
    app = App(programs=("sched",))
    first, second = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, {first})
    wanted = []
    with app.traced("job", "sched") if traced else app.span("job"):
        for number in range(times):
            cpu = (second, first)[number % 2]
            os.sched_setaffinity(0, {cpu})
            wanted.append(cpu)
            workloads.busy(0.002)
    return {"spans": app.spans(), "wanted": wanted, "first": first, "tid": threading.get_native_id()}


def need_two_cpus():
    """Skip where there is nothing to move to."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU only")


def test_running_thread():
    """Each move of a running thread is an event of its span, from the CPU that it was on to the one that it got."""
    need_two_cpus()
    found = run(moves, 10, True).value
    job = named(found["spans"], "job")
    events = sorted(
        (span for span in below(found["spans"], job) if span["name"] == "sched_migrate"), key=lambda span: span["start"]
    )

    assert found["wanted"] == [event["attributes"]["ebpftrace.sched.dest_cpu"] for event in events]
    assert [found["first"], *found["wanted"][:-1]] == [
        event["attributes"]["ebpftrace.sched.orig_cpu"] for event in events
    ]
    assert {found["tid"]} == {event["attributes"]["thread.id"] for event in events}
    assert all(job["start"] <= event["start"] == event["end"] <= job["end"] for event in events)


def test_untraced():
    """A thread whose span did not enable the program moves unseen."""
    need_two_cpus()

    assert [] == kernel(run(moves, 4, False).value["spans"])


def woken_elsewhere():
    """Have another thread forbid a sleeping one the CPU that it went to sleep on."""
    app = App(programs=("sched",))
    first, second = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, {first})
    tid, asleep = threading.get_native_id(), threading.Event()

    def move():
        asleep.wait()
        time.sleep(0.05)
        os.sched_setaffinity(tid, {second})

    mover = threading.Thread(target=move)
    mover.start()
    with app.traced("job", "sched"):
        asleep.set()
        time.sleep(0.2)
    mover.join()
    return {"spans": app.spans(), "cpus": [first, second]}


def test_sleeping_thread():
    """A thread that wakes up on another CPU than it slept on has the move below the span that it slept in."""
    need_two_cpus()
    found = run(woken_elsewhere).value
    events = [span for span in below(found["spans"], named(found["spans"], "job")) if span["name"] == "sched_migrate"]

    assert found["cpus"] == [
        events[-1]["attributes"]["ebpftrace.sched.orig_cpu"],
        events[-1]["attributes"]["ebpftrace.sched.dest_cpu"],
    ]
