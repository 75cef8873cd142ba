# SPDX-License-Identifier: Apache-2.0
"""For the kernel tests: may they run here, and did each leave the machine as it was."""

from __future__ import annotations

import functools
import os

import machine
import pytest

_FORCE = "EBPFTRACE_KERNEL_TESTS"


def _why_not():
    """Why this machine cannot run the kernel tests; "" when it can. Tried, not guessed: the core object is loaded."""
    try:
        from ebpftrace.kernel.object import BpfObject
        from ebpftrace.programs import CORE, ShippedProgram

        with BpfObject(CORE, ShippedProgram(CORE).object_bytes()) as core:
            core.load()
    except Exception as error:  # noqa: BLE001  (whatever it is, it is the reason)
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.fixture(scope="session")
def bpf():
    """Skip the kernel tests, with the reason, where they cannot run; fail instead when they were asked for."""
    reason = _why_not()
    if reason and os.environ.get(_FORCE) == "1":
        pytest.fail(f"{_FORCE}=1, but {reason}", pytrace=False)
    if reason:
        pytest.skip(f"this machine loads no BPF programs ({reason}); {_FORCE}=1 makes this a failure")
    machine.adopt_orphans()


@functools.cache
def _unsupported(program):
    """What this kernel lacks that a program cannot do without; "" when it is not that."""
    from ebpftrace.kernel.object import BpfObject
    from ebpftrace.programs import find
    from ebpftrace.programs.choose import lacks

    with BpfObject(program, find(program).object_bytes()) as obj:
        return lacks(obj)


@pytest.fixture(autouse=True)
def program(request, bpf):
    """Skip the tests of a program that this kernel cannot have, by `@pytest.mark.program(NAME)`."""
    for mark in request.node.iter_markers("program"):
        reason = _unsupported(*mark.args)
        if reason:
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def nothing_left(bpf):
    """Every kernel test leaves the machine as it found it."""
    before = (machine.mounts(), machine.bpf_fds())

    yield

    machine.until(lambda: not machine.children())
    assert machine.children() == [], "a process was left running"
    assert machine.cgroups() == []
    assert (machine.mounts(), machine.bpf_fds()) == before
