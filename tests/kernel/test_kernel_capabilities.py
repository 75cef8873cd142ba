# SPDX-License-Identifier: Apache-2.0
"""What a kernel lacks is told by its name; what it has is used."""

from __future__ import annotations

import errno
import subprocess

import pytest
from harness import run
from test_kernel_refusals import attempt, unharmed

from ebpftrace.kernel._native import lib

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/bpf.h>
#include <stdarg.h>
#include <sys/syscall.h>

long syscall(long number, ...)
{
	long (*real)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	va_list list;
	long a[6];

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_bpf && a[0] == BPF_MAP_CREATE && *(unsigned int *)a[1] == BPF_MAP_TYPE_RINGBUF) {
		errno = EINVAL;
		return -1;
	}
	return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"""


def test_no_ring_buffer(tmp_path):
    """A kernel without ring buffers, which refuses to make one, is told by that name and with what to do."""
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    outcome = run(attempt, env={"LD_PRELOAD": str(shim)})

    assert "BPF ring buffer" in outcome.value["reason"]
    assert "5.8" in outcome.value["reason"]
    assert unharmed(outcome)
    assert [f"WARNING kernel tracing is off: {outcome.value['reason']}"] == outcome.log


def without_tracepoint(name):
    """Start with a `sched` that asks for a tracepoint which this kernel does not have."""
    from ebpftrace.programs import ShippedProgram

    original = ShippedProgram.object_bytes
    hook = f"tp_btf/{name}".encode()
    ShippedProgram.object_bytes = lambda self: original(self).replace(hook, hook[:-1] + b"?")
    return attempt({"programs": ["sched"]})


def test_missing_tracepoint():
    """A function whose tracepoint the kernel does not have is left out, with one line; the others work."""
    outcome = run(without_tracepoint, "sched_waking")

    assert outcome.value["active"]
    assert 1 == len(outcome.log)
    assert "does without tp_btf/sched_wakin?" in outcome.log[0]
    assert {"sched_switch", "sched_wakeup", "sleep"} <= {span["name"] for span in outcome.value["spans"]}


def without_helper():
    """Start `sock` where tracing may not call the helper for values in sockets: one that no kernel has in its place."""
    from ebpftrace.programs import choose

    choose._SK_STORAGE_GET = 1 << 20
    return attempt({"programs": ["sock"]})


def test_missing_helper():
    """A program that cannot do without a helper is refused as a whole, with what the kernel lacks, said once."""
    outcome = run(without_helper)

    assert not outcome.value["active"]
    assert outcome.value["reason"].count("this kernel has no storage in sockets for tracing") == 1
    assert unharmed(outcome)


@pytest.mark.program("sock")
def test_helper():
    """The helper is found where the kernel has it."""
    assert 0 == lib.ebt_probe_helper(107)
    assert -errno.EINVAL == lib.ebt_probe_helper(1 << 20)
