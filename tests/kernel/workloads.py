# SPDX-License-Identifier: Apache-2.0
"""Ways to lose time, each in a span of the function's own name."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

_SPIN = "import time\nwhile True: pass"


def busy(seconds):
    """Use the CPU."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def pin_to_one_cpu():
    """Have every thread of this process share one CPU; returns it."""
    cpu = max(os.sched_getaffinity(0))
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(task.name), {cpu})
    return cpu


def spin(app):
    """Nothing but computing."""
    with app.span("spin"):
        busy(0.2)


def sleep(app):
    """Nothing but sleeping."""
    with app.span("sleep"):
        time.sleep(0.2)


def fsync(app):
    """Write to the disk, and wait for it each time."""
    data = os.urandom(4 << 10)
    with tempfile.TemporaryFile(dir=Path.cwd(), buffering=0) as file, app.span("fsync"):
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            file.write(data)
            os.fsync(file.fileno())


def contended_lock(app):
    """Wait for a lock whose holder sleeps."""
    lock, held = threading.Lock(), threading.Event()

    def hold():
        with lock:
            held.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with app.span("contended_lock"), lock:
        pass
    holder.join()


@contextlib.contextmanager
def _later(action, seconds=0.2):
    """Do something in another thread after a while."""
    timer = threading.Timer(seconds, action)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def pipe_read(app):
    """Wait for another thread's word in a pipe: neither disk nor network."""
    ours, theirs = os.pipe()
    with _later(lambda: os.write(theirs, b"x")), app.span("pipe_read"):
        os.read(ours, 1)
    os.close(ours)
    os.close(theirs)


@contextlib.contextmanager
def _connection():
    """Two ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
    with client, peer:
        yield client, peer


def socket_receive(app):
    """Wait for a peer's answer in recv(2)."""
    with _connection() as (client, peer), _later(lambda: peer.send(b"x")), app.span("socket_receive"):
        client.recv(1)


def socket_poll(app):
    """Wait for a peer's answer in poll(2)."""
    with _connection() as (client, peer), _later(lambda: peer.send(b"x")), app.span("socket_poll"):
        poll = select.poll()
        poll.register(client, select.POLLIN)
        poll.poll()


def neighbour(app):
    """Share a CPU with another process that wants it as much."""
    cpu = pin_to_one_cpu()
    other = subprocess.Popen([sys.executable, "-c", _SPIN], preexec_fn=lambda: os.sched_setaffinity(0, {cpu}))  # noqa: PLW1509
    try:
        time.sleep(0.2)  # it must be past its start-up
        with app.span("neighbour"):
            busy(0.5)
    finally:
        other.kill()
        other.wait()


def page_in(app):
    """Touch pages of a file that are not in memory."""
    size = 64 << 20
    with tempfile.TemporaryFile(dir=Path.cwd()) as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as pages:
            pages.madvise(mmap.MADV_RANDOM)  # no read-ahead
            with app.span("page_in"):
                sum(pages[offset] for offset in range(0, size, 64 << 10))


def quota(app, seconds, quota_us):
    """Use the CPU in a cgroup that may not; also says what the kernel counted."""
    from machine import CpuCgroup

    pin_to_one_cpu()  # cpu.stat adds the CPUs up
    with CpuCgroup(quota_us) as cgroup:
        busy(0.3)
        before = cgroup.throttled_ns()
        with app.span("quota"):
            busy(seconds)
        return {"throttled_ns": cgroup.throttled_ns() - before}
