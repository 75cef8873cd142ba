# SPDX-License-Identifier: Apache-2.0
"""Extras that stand in for a tracepoint are loaded only where the kernel does not have it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ebpftrace.kernel.object import Program
from ebpftrace.programs import find
from ebpftrace.programs.choose import choose_functions, kernel_knobs, why_not


class FakeObject:
    """An object with one extra, and the knob that tells it."""

    def __init__(self):
        self.chosen = {}
        self.knobs = {}
        self.btf = SimpleNamespace(variables=lambda _: {"has_reading": None})

    def programs(self):
        """Its functions."""
        return [Program("reading__without_better", "tp_btf/worse", optional=True)]

    def keeps_in_sockets(self):
        """It needs no helper that a kernel may lack."""
        return False

    def set_autoload(self, name, *, autoload):
        """Keep what was chosen."""
        self.chosen[name] = autoload

    def set_rodata(self, name, value):
        """Keep what was told."""
        self.knobs[name] = value


@pytest.mark.parametrize(
    ("tracepoints", "loaded"), [({"worse"}, True), ({"worse", "better"}, False), ({"better"}, False), (set(), False)]
)
def test_stand_in(tracepoints, loaded):
    """A stand-in is loaded where its own hook is there and the better one is not; its knob says so."""
    obj = FakeObject()
    missing = choose_functions(obj, SimpleNamespace(has_tracepoint=tracepoints.__contains__))

    assert {"reading__without_better": loaded} == obj.chosen
    assert ({"has_reading": 1} if loaded else {}) == obj.knobs
    assert {} == missing


def test_switched_off():
    """Without extras none is loaded, though the kernel would take it, and no knob tells of one."""
    obj = FakeObject()
    missing = choose_functions(obj, SimpleNamespace(has_tracepoint={"worse"}.__contains__), extras=False)

    assert {"reading__without_better": False} == obj.chosen
    assert {} == obj.knobs
    assert {} == missing


@pytest.mark.parametrize(
    ("tracepoints", "extras", "reason"),
    [
        ({"worse"}, True, ""),
        ({"worse", "better"}, True, "this kernel has the tracepoint better, which is better"),
        (set(), True, "this kernel has no tracepoint worse"),
        ({"worse"}, False, "extras are switched off"),
    ],
)
def test_why_not(tracepoints, extras, reason):
    """For a function that is left out there is a reason in words."""
    [function] = FakeObject().programs()

    assert reason == why_not(function, SimpleNamespace(has_tracepoint=tracepoints.__contains__), extras=extras)


def test_sock():
    """All stand-ins of the program "sock" name a tracepoint that the program asks for."""
    from ebpftrace.kernel.object import BpfObject

    functions = BpfObject("sock", find("sock").object_bytes()).programs()
    better = {function.name.partition("__without_")[2] for function in functions} - {""}

    assert {"sk_data_ready", "sock_recv_length", "sock_send_length"} == better
    assert better <= {function.section.removeprefix("tp_btf/") for function in functions}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"sched_switch": 3, "block_rq_issue": 2, "block_getrq": 3}, (0, 1, 1)),
        ({"sched_switch": 3, "block_rq_issue": 1, "block_getrq": 3}, (0, 0, 1)),
        ({"sched_switch": 4, "block_rq_issue": 1, "block_getrq": 1}, (1, 0, 0)),
        ({"sched_switch": 4, "block_rq_issue": 1}, (1, 0, 0)),
    ],
)
def test_knobs(arguments, expected):
    """What tracepoints pass is told to programs by each tracepoint's own arguments: 5.10 has of both kinds."""
    knobs = kernel_knobs(SimpleNamespace(tracepoint_arguments=lambda name: arguments.get(name, 0)))
    names = ("has_prev_state", "block_rq_has_queue", "block_getrq_has_queue")

    assert dict(zip(names, expected, strict=True)) == knobs
