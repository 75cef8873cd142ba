# SPDX-License-Identifier: Apache-2.0
"""What the library meets at the limits of a process: thread ids used again, forks behind its back, no memory left."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import threading
import time
from pathlib import Path

import machine
import pytest
from harness import App, below, kernel, named, own, run
from memory_cgroup import MemoryCgroup

_LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
_SYS = {"x86_64": {"exit": 60, "clone": 56}, "aarch64": {"exit": 93, "clone": 220}}[os.uname().machine]
_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")


def _end_thread():
    """End the calling thread in the kernel alone: no destructor runs, nothing is given back."""
    ctypes.CDLL(None).syscall(_SYS["exit"], 0)


def _die_in_a_span(app, *, untold):
    """A thread that ends with a context attached, having slept in it; its id."""
    from opentelemetry import context, trace

    import ebpftrace

    tids = []

    def work():
        tids.append(threading.get_native_id())
        context.attach(trace.set_span_in_context(app.tracer.start_span("dead")))
        ebpftrace.enable("sched").__enter__()  # never left
        time.sleep(0.2)
        if untold:
            _end_thread()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    machine.until(lambda: tids and not Path(f"/proc/self/task/{tids[0]}").exists())
    return tids[0]


def recycled(untold):
    """A thread dies in its span; others get its id, and work without a span, then with one."""
    app = App()
    dead = _die_in_a_span(app, untold=untold)
    found = {"dead": dead, "died": time.time_ns()}

    def work():
        found["tid"] = threading.get_native_id()
        time.sleep(0.03)  # nobody's
        with app.traced("heir", "sched"):
            time.sleep(0.01)

    for _ in range(20):  # nothing else runs in this namespace, but threads of our own may start
        _LAST_PID.write_text(str(dead - 1))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if found["tid"] == dead:
            break
        app.provider.force_flush()
        app.exporter.clear()
    return {**found, "spans": app.spans()}


@pytest.mark.parametrize("untold", [False, True], ids=["", "ended behind our back"])
def test_thread_id_used_again(untold):
    """A thread with the id of a dead one has neither its context nor its times, however the dead one ended."""
    found = run(recycled, untold, prefix=_PID_NAMESPACE).value
    heir = named(found["spans"], "heir")

    assert found["dead"] == found["tid"]
    assert {heir["id"]} == {span["parent"] for span in kernel(found["spans"]) if span["start"] > found["died"]}
    assert 1 == len([span for span in below(found["spans"], heir) if span["name"] == "sleep"])
    assert 9_000_000 <= heir["times"]["sleep"] <= heir["wall"]
    assert sum(heir["times"].values()) <= heir["wall"] + 100_000  # two clocks


def _c_fork(how):
    """Fork as a C extension would, without Python knowing."""
    libc = ctypes.PyDLL(None)  # keeps the GIL: the child goes on with Python
    return libc.fork() if how == "fork" else libc.syscall(_SYS["clone"], int(signal.SIGCHLD), 0, 0, 0, 0)


def _slots(session):
    with mmap.mmap(session._kernel.slots.fd, 0x10000, mmap.MAP_SHARED, mmap.PROT_READ) as table:
        return bytes(table)


def forked_in_c(how):
    """A C extension forks in a span; the child goes on with Python, makes spans and ends the library."""
    import ebpftrace

    app = App()
    with app.traced("parent", "sched"):
        time.sleep(0.01)
        app.session.flush()
        before = _slots(app.session)
        pid = _c_fork(how)
        if pid == 0:
            started = time.monotonic()
            for _ in range(10):
                with app.traced("child", "sched"):
                    time.sleep(0.001)
            app.session.flush()
            silent = not ebpftrace.stats()["active"] and "fork" in ebpftrace.stats()["reason"]
            ebpftrace.stop()
            silent = silent and not machine.bpf_fds() and time.monotonic() - started < 3
            os._exit(0 if silent else 3)
        _, status = os.waitpid(pid, 0)
        untouched = before == _slots(app.session)
        time.sleep(0.01)
    with app.traced("later", "sched"):
        time.sleep(0.01)
    return {"status": status, "untouched": untouched, "spans": app.spans(), "active": app.session.active}


@pytest.mark.parametrize("how", ["fork", "clone"])
def test_fork_in_c(how):
    """A child that Python was not told of writes nothing into its parent's table, untraced; the parent goes on."""
    found = run(forked_in_c, how).value
    spans = found["spans"]
    sleeps = [
        len([each for each in below(spans, named(spans, name)) if each["name"] == "sleep"])
        for name in ("parent", "later")
    ]

    assert 0 == found["status"]
    assert found["untouched"]
    assert found["active"]
    assert [2, 1] == sleeps
    assert {"parent", "later"} == {span["name"] for span in own(spans)}


def without_locked_memory():
    """A process that may lock no memory."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    app = App()
    with app.traced("job", "sched"):
        time.sleep(0.01)
    return {"active": app.session.active, "spans": app.spans()}


def test_no_locked_memory():
    """RLIMIT_MEMLOCK, which kernels before 5.11 hold maps against, changes nothing here or is one line that says so."""
    outcome = run(without_locked_memory)

    assert {"job"} == {span["name"] for span in own(outcome.value["spans"])}
    if outcome.value["active"]:
        assert kernel(outcome.value["spans"])
    else:
        [line] = [line for line in outcome.log if "kernel tracing is off" in line]
        assert "memory" in line or "RLIMIT_MEMLOCK" in line or "not permitted" in line


def without_memory():
    """A process in a memory cgroup that has room for Python, but not for the rings it asks for."""
    App().session.stop()  # everything is imported, and in memory
    with MemoryCgroup(room_mib=48):
        app = App(ring_kib=256 * 1024)
        with app.traced("job", "sched"):
            time.sleep(0.01)
        spans = app.spans()
        return {"active": app.session.active, "reason": app.session.reason, "spans": spans}


def test_no_memory():
    """Where the cgroup's memory has no room for the maps, one line says so, and the application goes on without."""
    outcome = run(without_memory)
    lines = [line for line in outcome.log if "kernel tracing is off" in line]

    assert not outcome.value["active"]
    assert ["job"] == [span["name"] for span in outcome.value["spans"]]
    assert 1 == len(lines)
    assert "memory" in lines[0]
    assert not [line for line in outcome.log if line.startswith("ERROR")]
