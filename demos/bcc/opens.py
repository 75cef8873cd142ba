# SPDX-License-Identifier: Apache-2.0
"""Which files does a span open? A BCC program with our header tells, below the very span.

    python3 demos/bcc/opens.py [OUTPUT]

Needs root, Debian's python3-bpfcc and the kernel's headers. OUTPUT gets the trace as OTLP JSON lines.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import ebpftrace
import ebpftrace.bcc

PROGRAM = """
#include <ebpftrace_bcc.h>

struct open_t {
    struct ebt_span span;
    u32 flags;
    char path[100];
};
BPF_RINGBUF_OUTPUT(opens, 64);

TRACEPOINT_PROBE(syscalls, sys_enter_openat)
{
    struct open_t record = {};

    if (!ebt_span_begin(&record.span, 0, sizeof(record)))
        return 0;
    record.flags = args->flags;
    bpf_probe_read_user_str(&record.path, sizeof(record.path), args->filename);
    if (opens.ringbuf_output(&record, sizeof(record), 0))
        ebt_drops.increment(0);
    return 0;
}
"""


class Open(ctypes.Structure):
    """`struct open_t`."""

    _fields_ = (
        ("span", ebpftrace.bcc.SpanHead),
        ("flags", ctypes.c_uint32),
        ("path", ctypes.c_char * 100),
    )


def main() -> None:
    """Open a file in a span, and another one outside of it."""
    output = sys.argv[1] if len(sys.argv) > 1 else "opens.jsonl"
    trace.set_tracer_provider(TracerProvider())
    tracer = trace.get_tracer("demo")
    bcc = ebpftrace.bcc.load_bcc()
    with (
        ebpftrace.start(programs=["exec"], output=output),
        bcc.BPF(text=PROGRAM, cflags=ebpftrace.bcc.cflags()) as bpf,
        ebpftrace.bcc.spans(bpf, "opens", Open, name="open", program="opens") as reader,
    ):
        Path("/etc/os-release").read_text()
        with tracer.start_as_current_span("greet"):
            name = Path("/etc/hostname").read_text().strip()
        print(f"hello, {name}")
        reader.flush()
        print(reader.stats())
    trace.get_tracer_provider().shutdown()


if __name__ == "__main__":
    main()
