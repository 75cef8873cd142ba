# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from ebpftrace.agent.health import judge
from ebpftrace.agent.snapshot import AgentSnapshot, ExportSnapshot, ProgramSnapshot, ReaderSnapshot, RegistrySnapshot

NOW = 10_000.0
SCHED = ProgramSnapshot(name="sched")
FAILED = ProgramSnapshot(name="bio", state="failed", error="no BTF")


def look(**values):
    return judge(AgentSnapshot(started_at=0.0, **({"programs": (SCHED,)} | values)), NOW)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"programs": (SCHED, FAILED)},
        {"programs": (ProgramSnapshot(name="sock", state="partial"),)},
        {"reader": ReaderSnapshot(last_round_at=NOW - 2)},
        {"registry": RegistrySnapshot(last_round_at=NOW - 2)},
        {"registry": RegistrySnapshot()},
        {"export": ExportSnapshot(failing_since=NOW - 59, last_error="refused")},
        {"export": ExportSnapshot(failing_since=0.0, last_error="refused, but long ago")},
    ],
)
def test_healthy(values):
    """Healthy is who has a program that runs, a reader that looks, and no long trouble with exporting."""
    health = look(**values)

    assert health.healthy
    assert () == health.reasons


@pytest.mark.parametrize(
    ("values", "alive", "reason"),
    [
        ({"reader": ReaderSnapshot(alive=False)}, False, "the reader of the ring buffers has ended"),
        (
            {"reader": ReaderSnapshot(last_round_at=NOW - 20)},
            False,
            "the reader has not looked into the ring buffers for 20 s",
        ),
        (
            {"registry": RegistrySnapshot(last_round_at=NOW - 20)},
            True,
            "the registration of applications has been stuck for 20 s",
        ),
        ({"programs": (FAILED,)}, True, "no program runs (bio failed)"),
        ({"programs": ()}, True, "no program is configured"),
        (
            {"export": ExportSnapshot(failing_since=NOW - 61, last_error="connection refused")},
            True,
            "the exporter has been failing for 61 s: connection refused",
        ),
        ({"stopping": True}, True, "the agent is stopping"),
    ],
)
def test_unhealthy(values, alive, reason):
    """What is wrong is said in words; only what a restart mends is called dead."""
    health = look(**values)

    assert not health.healthy
    assert alive == health.alive
    assert (reason,) == health.reasons
