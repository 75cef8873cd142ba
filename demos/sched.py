# SPDX-License-Identifier: Apache-2.0
"""Where a thread's time goes, cause by cause: `python demos/sched.py && ebpftrace show sched.jsonl`, as root."""

from __future__ import annotations

import os
import tempfile
import threading
import time

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import ebpftrace

ebpftrace.start(output="sched.jsonl")
trace.set_tracer_provider(TracerProvider())
tracer = trace.get_tracer("demo")
lock = threading.Lock()


@ebpftrace.traced("sched")
def compute() -> None:
    """On CPU: nothing but work."""
    sum(number * number for number in range(1_000_000))


@ebpftrace.traced("sched")
def save() -> None:
    """Disk: fsync() waits until it is written."""
    with tempfile.TemporaryFile(dir=".") as file:
        file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())


@ebpftrace.traced("sched")
def wait_for_lock() -> None:
    """Lock: another thread holds it; the kernel span says which."""
    with lock:
        pass


@ebpftrace.traced("sched")
def pause() -> None:
    """Sleep: it asked for it."""
    time.sleep(0.03)


def hold_lock() -> None:
    """Hold the lock for a while."""
    with lock:
        time.sleep(0.05)


if __name__ == "__main__":
    with tracer.start_as_current_span("a request"):
        compute()
        save()
        holder = threading.Thread(target=hold_lock, name="holder")
        holder.start()
        wait_for_lock()
        holder.join()
        pause()
