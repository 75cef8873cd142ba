# SPDX-License-Identifier: Apache-2.0
"""What stands in for a running `bcc.BPF` where BCC is not: its interface, over buffers that the kernel really fills."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ebpftrace.kernel.object import BpfObject

SOURCE = Path(__file__).parent.parent / "data/bcc/buffers.bpf.c"
COMMAND = Path(sys.executable).with_name("ebpftrace")
TYPES = {"perf": 4, "ring": 27, "calls": 2}


class Call(ctypes.Structure):
    """`struct call` of buffers.bpf.c."""

    _fields_ = (
        ("ts", ctypes.c_uint64),
        ("tgid", ctypes.c_uint32),
        ("number", ctypes.c_int32),
        ("comm", ctypes.c_char * 16),
    )


class Table:
    """BCC's object for a map."""

    def __init__(self, bpf, name, fd):
        self.bpf, self._name, self.map_fd, self.ttype = bpf, name.encode(), fd, TYPES[name]
        self._cbs = {}

    def event(self, data):
        """The record as what BCC saw the program submit."""
        return ctypes.cast(data, ctypes.POINTER(Call)).contents


class Bpf:
    """A loaded program that submits a `Call` to both buffers for every getppid(2) of this process."""

    def __init__(self, folder):
        compiled = folder / "buffers.bpf.o"
        subprocess.run([COMMAND, "build", SOURCE, "-o", compiled, "--werror"], check=True, capture_output=True)
        self._object = BpfObject("buffers", compiled.read_bytes())
        self._object.set_rodata("filter_tgid", os.getpid())
        self._object.load()
        self._object.attach()
        self.module, self.tables = 1, {}
        for name in TYPES:
            self.tables[name] = Table(self, name, self._object.map(name).fd)

    def __getitem__(self, name):
        return self.tables[name]

    def perf_buffer_poll(self, timeout=-1):
        """BCC's; ours never calls it."""
        raise AssertionError("we poll for ourselves")

    def cleanup(self):
        """Detach, and close the maps' descriptors; idempotent."""
        self.module = None
        self._object.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.cleanup()


class Spans:
    """A TracerProvider that keeps what it gets."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def found(self):
        """All so far."""
        return self.exporter.get_finished_spans()


def call(times):
    """Have this process submit records."""
    for _ in range(times):
        os.getppid()
