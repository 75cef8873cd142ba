# SPDX-License-Identifier: Apache-2.0
"""A forked child leaves its parent's table alone, and traces itself."""

from __future__ import annotations

import itertools
import json
import mmap
import multiprocessing
import os
import pkgutil
import sys
import threading
import time

import pytest
from harness import App, below, kernel, named, plain, run
from machine import bpf_fds, bpf_ids, until


def _in_child(action):
    """Fork; return what `action()` returned in the child, which must end well."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(ours)
            data = json.dumps(action()).encode()
            while data:
                data = data[os.write(theirs, data) :]
            code = 0
        except BaseException:  # noqa: BLE001  (a child of a fork has nobody to raise to)
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"the child ended with status {status}")
    return json.loads(data)


def _table(session):
    """All slots of this process's context table."""
    fd = session._kernel.slots.fd
    with mmap.mmap(fd, 64 * 1024, mmap.MAP_SHARED, mmap.PROT_READ) as table:
        return bytes(table)


def _traced_sleep(app, name):
    with app.traced(name, "sched"):
        time.sleep(0.02)


def _child_at_work(app):
    """What an application does in a child: its first span starts the library there, later ones are traced."""
    import ebpftrace

    with app.span("first"):
        pass
    active = bool(until(lambda: ebpftrace.stats()["active"]))
    _traced_sleep(app, "child")
    app.provider.force_flush()
    spans = [plain(span) for span in app.exporter.get_finished_spans()]
    ebpftrace.stop()
    return {"pid": os.getpid(), "active": active, "spans": spans}


def forked():
    """A parent in the middle of a span, and its child."""
    app = App()
    with app.traced("parent", "sched"):
        time.sleep(0.02)
        app.provider.force_flush()  # the reader's thread has its slot now
        before = _table(app.session)
        child = _in_child(lambda: _child_at_work(app))
        after = _table(app.session)
        time.sleep(0.02)
    return {"pid": os.getpid(), "child": child, "untouched": before == after, "spans": app.spans()}


def test_parents_table():
    """A child never writes into its parent's table, and its kernel spans do not reach the parent."""
    found = run(forked).value
    tids = {span["attributes"]["thread.id"] for span in kernel(found["spans"], "sched")}

    assert found["untouched"]
    assert {found["pid"]} == tids
    assert len([span for span in kernel(found["spans"]) if span["name"] == "sleep"]) == 2


def test_child_is_traced():
    """A forked child starts the library again at its first span, and exports kernel spans of its own."""
    child = run(forked).value["child"]
    mine = named(child["spans"], "child")
    under = below(child["spans"], mine)

    assert child["active"]
    assert "sleep" in {span["name"] for span in under}
    assert {child["pid"]} == {span["attributes"]["process.pid"] for span in under}
    assert mine["times"]["sleep"] >= 19_000_000


def forked_in_a_thread():
    """A fork() in a thread that is not the main one, and that has a span."""
    app, found = App(), {}

    def work():
        with app.traced("thread", "sched"):
            time.sleep(0.01)
            found["child"] = _in_child(lambda: _child_at_work(app))
            time.sleep(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return {**found, "spans": app.spans()}


def test_fork_in_a_thread():
    """A fork() in any thread does the same."""
    found = run(forked_in_a_thread).value

    assert "sleep" in {span["name"] for span in below(found["child"]["spans"], named(found["child"]["spans"], "child"))}
    assert 2 == len([span for span in kernel(found["spans"]) if span["name"] == "sleep"])


def silent_child():
    """A child without spans, and what it holds."""
    import ebpftrace

    app = App()
    facts = _in_child(lambda: {"fds": bpf_fds(), "stats": ebpftrace.stats()})
    _traced_sleep(app, "parent")
    return {**facts, "spans": app.spans()}


def test_child_lets_go():
    """A child that makes no span holds none of its parent's BPF objects, which go on working."""
    found = run(silent_child).value

    assert [] == found["fds"]
    assert not found["stats"]["active"]
    assert "forked" in found["stats"]["reason"]
    assert kernel(found["spans"])


def _process_main(queue):
    """What a multiprocessing worker does; with "spawn" the library is not there yet."""
    app = App()
    with app.span("first"):
        pass
    import ebpftrace

    until(lambda: ebpftrace.stats()["active"])
    _traced_sleep(app, "child")
    queue.put((os.getpid(), app.spans()))
    ebpftrace.stop()


def worker(method):
    """A multiprocessing worker, started by `method`."""
    app = App()
    _traced_sleep(app, "before")
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_process_main, args=(queue,))
    process.start()
    pid, spans = queue.get()
    process.join()
    if method != "fork":  # its helper would outlive the test
        from multiprocessing import forkserver, resource_tracker

        resource_tracker._resource_tracker._stop()
        if method == "forkserver":
            forkserver._forkserver._stop()
    _traced_sleep(app, "after")
    return {"pid": pid, "exit": process.exitcode, "child": spans, "spans": app.spans()}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method):
    """Workers of multiprocessing are traced, however they are started; so is their parent, before and after."""
    found = run(worker, method).value

    assert 0 == found["exit"]
    mine = named(found["child"], "child")
    assert {found["pid"]} == {span["attributes"]["process.pid"] for span in below(found["child"], mine)}
    for name in ("before", "after"):
        assert "sleep" in {span["name"] for span in below(found["spans"], named(found["spans"], name))}


def executed():
    """A fork and an exec of another Python that uses the library."""
    app = App()
    code = "import ebpftrace; session = ebpftrace.start(); raise SystemExit(7 if session.active else session.reason)"
    with app.traced("parent", "sched"):
        pid = os.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", code])
        _, status = os.waitpid(pid, 0)
    return {"code": os.waitstatus_to_exitcode(status), "spans": app.spans(), "pid": os.getpid()}


def test_exec_after_fork():
    """A child that execs another application leaves nothing to it: it starts the library itself."""
    found = run(executed).value

    assert 7 == found["code"]
    assert {found["pid"]} == {span["attributes"]["process.pid"] for span in kernel(found["spans"], "sched")}


def regular_exit():
    """A child that ends as scripts do, with its exit handlers, before its first span or after it."""
    app = App()
    codes = []
    for with_span in (False, True):
        pid = os.fork()
        if pid == 0:
            if with_span:
                _child_at_work_without_stop(app)
            sys.exit(4)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    _traced_sleep(app, "parent")
    return {"codes": codes, "spans": app.spans()}


def test_regular_exit():
    """The exit handlers of a child end the child's library and not its parent's."""
    found = run(regular_exit).value

    assert [4, 4] == found["codes"]
    assert "sleep" in {span["name"] for span in kernel(found["spans"])}


def in_a_crowd():
    """Forty forks while other threads make spans all the time."""
    app, done = App(export=False), threading.Event()

    def spans():
        while not done.is_set():
            with app.traced("busy", "sched"):
                time.sleep(0.0002)

    threads = [threading.Thread(target=spans) for _ in range(3)]
    for thread in threads:
        thread.start()

    def child():
        with app.span("child"):
            return True

    children = [_in_child(child) for _ in range(40)]
    done.set()
    for thread in threads:
        thread.join()
    return {"children": children, "active": app.session.active}


def test_fork_in_a_crowd():
    """No child hangs because another thread was in the middle of something when it was forked."""
    found = run(in_a_crowd).value

    assert [True] * 40 == found["children"]
    assert found["active"]


def grandchildren():
    """A child's child."""
    app = App()

    def child():
        mine = _child_at_work_without_stop(app)
        return {"mine": mine, "below": _in_child(lambda: _child_at_work(app))}

    return _in_child(child)


def _child_at_work_without_stop(app):
    import ebpftrace

    with app.span("first"):
        pass
    return bool(until(lambda: ebpftrace.stats()["active"]))


def test_grandchild():
    """A child of a child is traced, too."""
    found = run(grandchildren).value

    assert found["mine"]
    assert found["below"]["active"]
    assert below(found["below"]["spans"], named(found["below"]["spans"], "child"))


def _hold(owner, name, calls):
    """Have the call number `calls` of a function wait: returns what is set when it came, and what lets it go on."""
    came, go_on = threading.Event(), threading.Event()
    owner = pkgutil.resolve_name(owner)
    original, numbers = getattr(owner, name), itertools.count(1)

    def held(*args):
        if next(numbers) == calls:
            came.set()
            go_on.wait()
        return original(*args)

    setattr(owner, name, held)
    return came, go_on


def forked_in_start(owner, name, calls):
    """A fork() while start() is under way in another thread."""
    import ebpftrace

    app = App()
    ebpftrace.stop()
    came, go_on = _hold(owner, name, calls)
    thread = threading.Thread(target=ebpftrace.start)
    thread.start()
    came.wait()
    held = bpf_ids()
    child = _in_child(lambda: {"fds": bpf_fds(), **_child_at_work(app)})
    go_on.set()
    thread.join()
    _traced_sleep(app, "parent")
    return {"child": child, "held": len(held), "spans": app.spans()}


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        ("ebpftrace.kernel.object:BpfObject", "attach", 1),
        ("ebpftrace.kernel.object:BpfObject", "attach", 2),
        ("ebpftrace.context.hooks", "install", 1),
    ],
    ids=["first program", "second program", "all programs"],
)
def test_fork_in_start(owner, name, calls):
    """A child that is forked while start() runs in another thread holds nothing of it, and is traced by its own."""
    found = run(forked_in_start, owner, name, calls).value
    child = found["child"]

    assert found["held"] > 0
    assert [] == child["fds"]
    assert child["active"]
    assert below(child["spans"], named(child["spans"], "child"))
    assert below(found["spans"], named(found["spans"], "parent"))


def double_fork(place):
    """A grandchild whose parent had not got far: no span yet, or its own start still under way."""
    app = App()

    def child():
        if place:
            came, go_on = _hold(*place, 1)
            with app.span("first"):
                came.wait()
        mine = bpf_ids()
        below = _in_child(lambda: {"ids": bpf_ids(), **_child_at_work(app)})
        if place:
            go_on.set()
        return {"mine": mine, "below": below}

    return _in_child(child)


@pytest.mark.parametrize(
    "place",
    [None, ("ebpftrace.runtime.session:Session", "__init__"), ("ebpftrace.kernel.object:BpfObject", "attach")],
    ids=["no span", "before the start", "in the start"],
)
def test_double_fork(place):
    """The grandchild of a double fork is traced, though nothing ran in its parent yet; and holds nothing of it."""
    found = run(double_fork, place).value
    grandchild = found["below"]

    assert bool(found["mine"]) == (place is not None and "attach" in place)
    assert [] == grandchild["ids"]
    assert grandchild["active"]
    assert below(grandchild["spans"], named(grandchild["spans"], "child"))
