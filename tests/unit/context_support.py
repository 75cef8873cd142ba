# SPDX-License-Identifier: Apache-2.0
"""A context table without a kernel: ordinary shared memory, in which a test can also play the kernel."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import mmap
import os
import signal
import struct
import threading
import time
from types import SimpleNamespace

from opentelemetry.context.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.propagation import _SPAN_KEY

from ebpftrace.context import _publisher
from ebpftrace.context.hooks import MASK_KEY

# struct ebt_slot, and the part of struct ebt_line that its thread reads (bpf/include/ebpftrace_abi.h)
SLOT = struct.Struct("16s8sBBHIIIQQQ")
LINE = struct.Struct("QQQ9QQ")
LINE_BYTES, OFF_SINCE = 256, 128
GONE = 0xFFFFFFFF  # EBT_TID_GONE

TRACE_ID, SPAN_ID = 0x0102030405060708090A0B0C0D0E0F10, 0x1112131415161718
_NOTHING = Context()


class Table:
    """A context table in shared memory, as the kernel would have it."""

    def __init__(self):
        self.slots_fd, self.lines_fd = os.memfd_create("slots"), os.memfd_create("lines")
        os.ftruncate(self.slots_fd, SLOT.size * _publisher.TABLE_SLOTS)
        os.ftruncate(self.lines_fd, LINE_BYTES * _publisher.TABLE_SLOTS)
        self.memory = mmap.mmap(self.slots_fd, 0)
        self.lines = mmap.mmap(self.lines_fd, 0)

    def arm(self):
        """Have the publisher use it."""
        _publisher.arm(self.slots_fd, self.lines_fd)

    def owners(self):
        """Thread ids of all slots that were ever claimed."""
        tids = [slot[6] for slot in SLOT.iter_unpack(bytes(self.memory))]
        return [tid for tid in tids if tid]

    def rearm(self):
        """Have the publisher map it again, as after an agent's restart."""
        _publisher.rearm(self.slots_fd, self.lines_fd)

    def move_slot(self):
        """Move the calling thread's slot one further, as though another thread had been before it and gone."""
        home = self.tids().index(threading.get_native_id())
        there = (home + 1) % _publisher.TABLE_SLOTS * SLOT.size
        home *= SLOT.size
        self.memory[there : there + SLOT.size] = self.memory[home : home + SLOT.size]
        struct.pack_into("I", self.memory, home + 32, GONE)

    def tids(self):
        """Whose each slot is; 0: nobody's yet."""
        return [slot[6] for slot in SLOT.iter_unpack(bytes(self.memory))]

    def fresh(self):
        """The span ids that a BPF program finds for the calling thread; it goes by the thread's id alone."""
        tid = threading.get_native_id()
        mine = [slot for slot in SLOT.iter_unpack(bytes(self.memory)) if slot[6] == tid and slot[2] == 1]
        return [int.from_bytes(slot[1], "big") for slot in mine if stamp_now(slot[8]) == slot[9]]

    def occupy(self, tid, *, but=None):
        """Give every slot to a thread that does not exist, but the one of a thread that does."""
        for index, slot in enumerate(SLOT.iter_unpack(bytes(self.memory))):
            if slot[6] == but:
                continue
            struct.pack_into("I", self.memory, index * SLOT.size + 32, tid)

    def close(self):
        """Let go of it."""
        self.memory.close()
        self.lines.close()
        os.close(self.slots_fd)
        os.close(self.lines_fd)

    def switched(self, *, on_since, times, lost=0, off_since=0):
        """Be the kernel: this thread was switched out and in, and its account is this."""
        tid = threading.get_native_id()
        slots = enumerate(SLOT.iter_unpack(bytes(self.memory)))
        [(index, generation)] = [(index, slot[7]) for index, slot in slots if slot[6] == tid]
        switches = LINE.unpack_from(self.lines, index * LINE_BYTES)[1] + 1
        owner = tid | generation << 32
        LINE.pack_into(self.lines, index * LINE_BYTES, owner, switches, on_since, *times, lost)
        struct.pack_into("Q", self.lines, index * LINE_BYTES + OFF_SINCE, off_since)


@contextlib.contextmanager
def armed_table():
    """Make a table and have the publisher use it; its `forks` counts the calls of on_fork."""
    table = Table()
    table.forks = []
    _publisher.configure(span_key=_SPAN_KEY, mask_key=MASK_KEY, on_fork=lambda: table.forks.append(1))
    table.arm()
    try:
        yield table
    finally:
        _publisher.disarm()
        _publisher.set_default_mask(0)
        table.close()


def runtime_context():
    """Make a runtime context with a variable of its own, as OpenTelemetry's has one."""
    return _publisher.RuntimeContext(object(), contextvars.ContextVar("test", default=_NOTHING))


def published():
    """What the calling thread's slot says; None without one."""
    data = _publisher.slot_bytes()
    if data is None:
        return None
    trace_id, span_id, valid, flags, _, mask, tid, generation, stamp_addr, stamp, _ = SLOT.unpack(data)
    return SimpleNamespace(
        trace_id=int.from_bytes(trace_id, "big"),
        span_id=int.from_bytes(span_id, "big"),
        valid=valid,
        flags=flags,
        mask=mask,
        tid=tid,
        generation=generation,
        stamp_addr=stamp_addr,
        stamp=stamp,
    )


def context(span_id=SPAN_ID, *, sampled=True, mask=None, trace_id=TRACE_ID):
    """A context with a span."""
    span = NonRecordingSpan(SpanContext(trace_id, span_id, False, TraceFlags(int(sampled))))
    return Context({_SPAN_KEY: span} | ({MASK_KEY: mask} if mask is not None else {}))


def until(condition):
    """Wait for what an ending thread does after join() has returned."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def stamp_now(address):
    """ebt_stamp() of what a stamp's address says now."""
    context, switches, thread = (ctypes.c_uint64 * 3).from_address(address)
    return (context + switches * 0x9E3779B97F4A7C15 + thread * 0xC13FA9A902A6328F) % 2**64


def clone():
    """Fork by the bare system call, of which no fork handler is told."""
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    return ctypes.PyDLL(None).syscall(number, int(signal.SIGCHLD), 0, 0, 0, 0)


def bare_fork(work):
    """Run `work` in a child of clone(); return its wait status."""
    pid = clone()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def in_thread(work):
    """Run `work` in a thread of its own; return what it returned."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]
