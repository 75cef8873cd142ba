# SPDX-License-Identifier: Apache-2.0
"""Applications that register with an agent; each runs in a process of its own, where tests' other modules are not."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import machine
from harness import App


def waiting(path):
    """A span that waits with everything enabled."""
    import ebpftrace

    app = App(agent_socket=path)
    with app.traced("wait"):
        time.sleep(0.05)
    stats = ebpftrace.stats()
    return {
        "active": app.session.active,
        "pid": os.getpid(),
        "spans": app.spans(),
        "by": stats["by"],
        "fds": machine.bpf_fds(),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }


def on(path, seconds, ready):
    """Spans, one after the other, over a restart of the agent; returns (time, has a breakdown) of each."""
    import ebpftrace

    app = App(agent_socket=path)
    until, started = time.monotonic() + seconds, []
    while time.monotonic() < until and not (ebpftrace.stats()["agent"]["reconnects"] and len(started) > 20):
        with app.traced("wait"):
            time.sleep(0.05)
        started.append(time.monotonic())
        Path(ready).touch()
    for _ in range(5):
        with app.traced("last"):
            time.sleep(0.05)
    return {"stats": ebpftrace.stats(), "spans": [[each["name"], each["id"], each["times"]] for each in app.spans()]}


def forking(path):
    """A span here, and one in a forked child."""
    app = App(agent_socket=path)
    with app.span("parent"):
        time.sleep(0.01)
    read, write = os.pipe()
    if os.fork() == 0:
        import ebpftrace

        def registered():
            with app.span("first"):  # from its first span on it starts again, in the background
                time.sleep(0.01)
            return ebpftrace.stats()["by"] == "agent"

        machine.until(registered)
        with app.traced("child") as span:
            time.sleep(0.05)
        span_id = format(span.get_span_context().span_id, "016x")
        os.write(write, str(span_id).encode())
        os._exit(0)
    os.close(write)
    child = os.read(read, 64).decode()
    os.close(read)
    os.wait()
    return {"child": child, "still": app.session.active}


def refused(path):
    """Start where there is an agent that refuses, or none."""
    app = App(agent_socket=path)
    with app.traced("job"):
        time.sleep(0.01)
    return {"active": app.session.active, "reason": app.session.reason, "spans": app.spans()}
