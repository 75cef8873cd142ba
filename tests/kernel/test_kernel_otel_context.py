# SPDX-License-Identifier: Apache-2.0
"""A BPF program that follows OTEP 4947, and knows nothing of ours, reads each thread's span where the thread is."""

from __future__ import annotations

import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from otep_app import UNPRIVILEGED, Application

from ebpftrace.kernel.object import BpfObject

pytestmark = [
    pytest.mark.usefixtures("bpf"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the program reads x86-64's thread pointer"),
]

COMMAND = Path(sys.executable).with_name("ebpftrace")
SOURCE = Path(__file__).parents[1] / "data" / "programs" / "thread_context.bpf.c"
RECORD = struct.Struct("=16s8sBBHI")
NO_POINTER, A_RECORD = 1, 2
# sched_get_priority_max(policy): harmless, and there is no such policy
SYSCALL, FIRST_MARK = 146, 0x0E4947000

CODE = """
    import ctypes
    mark = ctypes.CDLL(None).syscall
    mark.argtypes = [ctypes.c_long, ctypes.c_long]
    ebpftrace.start()
    tracer, ready, go, truth = provide(), threading.Barrier(5), threading.Barrier(5), {}

    def work(number):
        with tracer.start_as_current_span("outer") as outer:
            ready.wait(); go.wait()
            mark(SYSCALL, FIRST_MARK + 10 * number)
            with tracer.start_as_current_span("inner") as inner:
                mark(SYSCALL, FIRST_MARK + 10 * number + 1)
            mark(SYSCALL, FIRST_MARK + 10 * number + 2)
        mark(SYSCALL, FIRST_MARK + 10 * number + 3)
        for at, span in enumerate((outer, inner, outer, None)):
            truth[10 * number + at] = hexadecimal(span) if span else None
        ready.wait()

    def idle():
        ready.wait(); go.wait()
        mark(SYSCALL, FIRST_MARK + 40)
        truth[40] = "no pointer"
        ready.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)] + [threading.Thread(target=idle)]
    [thread.start() for thread in threads]
    ready.wait()
    say(1)
    go.wait(); ready.wait()
    [thread.join() for thread in threads]
    say({"truth": truth, "active": ebpftrace.stats()["active"]})
"""


@pytest.mark.parametrize("privileged", [True, False])
def test_in_the_kernel(tmp_path, privileged):
    """Each thread's span, nested ones too, from a table of the kernel's and from one of the process itself."""
    target = tmp_path / "thread_context.bpf.o"
    subprocess.run([COMMAND, "build", SOURCE, "-o", target, "--werror"], check=True, capture_output=True)
    code = CODE.replace("SYSCALL", str(SYSCALL)).replace("FIRST_MARK", str(FIRST_MARK))
    with (
        Application(code, prefix=() if privileged else UNPRIVILEGED) as app,
        BpfObject("thread_context", target.read_bytes()) as program,
    ):
        app.said()
        knobs = {"symbol_offset": app.reader.symbol()(0), "syscall_number": SYSCALL, "first_mark": FIRST_MARK}
        for name, value in knobs.items():
            program.set_rodata(name, value)
        program.load()
        program.attach()
        app.go_on()
        said = app.said()
        records = program.map("records")
        found = {number: told(records.lookup(struct.pack("=I", int(number)))) for number in said["truth"]}

    assert privileged is said["active"]
    assert 13 == len(found)
    assert said["truth"] == found


def told(data):
    """A record as the application would tell it."""
    trace_id, span_id, valid, flags, size, seen = RECORD.unpack(data)
    if seen == NO_POINTER:
        return "no pointer"
    assert (A_RECORD, 0) == (seen, size)
    return [trace_id.hex(), span_id.hex(), flags] if valid == 1 else None
