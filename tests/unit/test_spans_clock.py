# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest

from ebpftrace.spans import clock as clock_module
from ebpftrace.spans.clock import Clock


class Machine:
    """A machine whose two clocks the test moves; reading one takes `cost` ns."""

    def __init__(self, cost=10):
        self.mono = 5_000_000
        self.offset = 1_700_000_000_000_000_000
        self.cost = cost

    def wall(self):
        """CLOCK_REALTIME."""
        return self.mono + self.offset

    def monotonic(self):
        """CLOCK_MONOTONIC; time passes while it is read."""
        self.mono += self.cost
        return self.mono

    def clock(self, **settings):
        """Make a clock on this machine."""
        return Clock(wall=self.wall, monotonic=self.monotonic, **settings)


def test_epoch_of_a_kernel_timestamp_is_the_wall_clock_at_that_time():
    """A timestamp taken now maps to the wall clock's now, up to half the bracket."""
    machine = Machine()

    clock = machine.clock()

    assert abs(clock.to_epoch(machine.mono) - machine.wall()) <= clock.bracket_ns // 2 + 1


def test_real_clocks_agree_within_100_microseconds():
    """With the machine's own clocks the mapping is right to far less than a span's duration."""
    clock = Clock()

    before = time.time_ns()
    epoch = clock.to_epoch(time.monotonic_ns())
    after = time.time_ns()

    assert before - 100_000 <= epoch <= after + 100_000


def test_narrowest_bracket_wins():
    """A sample that was preempted between its reads does not spoil the calibration."""
    machine = Machine()
    costs = iter([90_000, 90_000, 10, 10] + [50_000] * 100)

    def monotonic():
        machine.mono += next(costs)
        return machine.mono

    clock = Clock(samples=4, wall=machine.wall, monotonic=monotonic)

    assert clock.bracket_ns == 10


def test_small_drift_is_not_adopted():
    """Within the tolerance the offset stays, so siblings keep their nanosecond order."""
    machine = Machine()
    clock = machine.clock()
    before = clock.to_epoch(1)
    machine.offset += 19_000

    adopted = clock.refresh()

    assert (adopted, clock.to_epoch(1), clock.steps) == (False, before, 0)


def test_drift_that_added_up_is_adopted():
    """Many small drifts are measured against the adopted offset, not against the last look."""
    machine = Machine()
    clock = machine.clock()

    adopted = []
    for _ in range(3):
        machine.offset += 9_000
        adopted.append(clock.refresh())

    assert adopted == [False, False, True]


@pytest.mark.parametrize("step", [3_600_000_000_000, -3_600_000_000_000, 25_000])
def test_step_is_adopted_and_counted(step):
    """A stepped wall clock (NTP, resume from suspend) moves the mapping by the step."""
    machine = Machine()
    clock = machine.clock()
    before = clock.to_epoch(1)
    machine.offset += step

    adopted = clock.refresh()

    assert (adopted, clock.to_epoch(1) - before, clock.steps) == (True, step, 1)


def test_measurement_wider_than_the_change_proves_nothing():
    """When every sample was preempted, a change smaller than the bracket is not taken for a step."""
    machine = Machine()
    clock = machine.clock()
    machine.cost = 500_000
    machine.offset += 100_000

    assert not clock.refresh()


def test_time_namespace_offset_is_taken_out(tmp_path, monkeypatch):
    """In a time namespace CLOCK_MONOTONIC is shifted for this process, and not for BPF programs."""
    offsets = tmp_path / "timens_offsets"
    offsets.write_text("monotonic           1000         5\nboottime            7         0\n")
    monkeypatch.setattr(clock_module, "_TIMENS", offsets)
    shift = 1_000_000_000_005

    clock = Clock()

    seen = time.monotonic_ns()
    assert abs(clock.to_epoch(seen - shift) - time.time_ns()) < 1_000_000


def test_kernel_without_time_namespaces_has_no_offset(tmp_path, monkeypatch):
    """Where the kernel has no time namespaces the file is missing, and so is the offset."""
    monkeypatch.setattr(clock_module, "_TIMENS", tmp_path / "missing")

    assert abs(Clock().to_epoch(time.monotonic_ns()) - time.time_ns()) < 1_000_000
