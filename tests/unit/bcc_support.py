# SPDX-License-Identifier: Apache-2.0
"""What the tests of ebpftrace.bcc share: a program and its tables as BCC would give them, without BCC or a kernel."""

from __future__ import annotations

import ctypes
import types

from ebpftrace.spans.sink import NullSink


class Event(ctypes.Structure):
    """A record."""

    _fields_ = (("ts", ctypes.c_uint64), ("pid", ctypes.c_uint32), ("result", ctypes.c_int32))


class Table:
    """BCC's object for a map."""

    def __init__(self, bpf, name, ttype, event_class=Event):
        self.bpf, self._name, self.ttype, self._event_class = bpf, name.encode(), ttype, event_class
        self.map_fd = hash(name)
        self._cbs = {}

    def event(self, data):
        """The record as what BCC saw submitted; its way out when it does not know."""
        if self._event_class is None:
            raise SystemExit(1)
        return ctypes.cast(data, ctypes.POINTER(self._event_class)).contents


class PerfEventArray(Table):
    def open_perf_buffer(self, callback, page_cnt=8, lost_cb=None, wakeup_events=1):
        """Keep what it is given."""
        self._cbs[0] = callback
        self.opened = {"pages": page_cnt, "lost": lost_cb, "wakeup_events": wakeup_events}


class RingBuf(Table):
    def open_ring_buffer(self, callback, ctx=None):
        """Keep what it is given."""
        self._cbs[0] = callback


class Bpf:
    """A program with a buffer of each kind, and a hash."""

    def __init__(self, **tables):
        self.module = 1
        self.tables = {}
        for name, (kind, event_class) in (tables or {"events": ("perf", Event)}).items():
            maker, ttype = {"perf": (PerfEventArray, 4), "ring": (RingBuf, 27), "hash": (Table, 1)}[kind]
            self.tables[name] = maker(self, name, ttype, event_class)

    def __getitem__(self, name):
        return self.tables[name]

    def perf_buffer_poll(self, timeout=-1):
        """Nothing is polled here."""

    def cleanup(self):
        """Close it."""
        self.module = None

    def submit(self, name, record):
        """Have BCC read a record, and call back from C, through which no exception gets."""
        data = bytes(record)
        room = ctypes.create_string_buffer(data, len(data))
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
        return kind(lambda *args: self.tables[name]._cbs[0](*args) or 0)(None, ctypes.addressof(room), len(data))


def module():
    """What stands in for the module `bcc`."""
    table = types.SimpleNamespace(PerfEventArray=PerfEventArray, RingBuf=RingBuf)
    return types.SimpleNamespace(BPF=Bpf, table=table)


class Kept(NullSink):
    """A sink that keeps the spans."""

    def __init__(self):
        super().__init__("a test")
        self.spans = []

    def emit(self, spans):
        """Keep them."""
        self.spans += spans
        super().emit(spans)
