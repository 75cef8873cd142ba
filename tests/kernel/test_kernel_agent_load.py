# SPDX-License-Identifier: Apache-2.0
"""The agent under load: 200,000 records a second for half a minute, as its benchmark measures it."""

from __future__ import annotations

import pytest

SECONDS = 30
MOST_MIB = 100


@pytest.mark.timeout(180)
def test_nothing_is_lost(tmp_path):
    """Every record is read, exported and received; the agent's counters say so; its memory stays bounded."""
    pytest.importorskip("prometheus_client", reason="the agent's counters are served by prometheus_client")
    from agent_throughput import RATE, Run, prepare

    prepare(tmp_path)
    run = Run(tmp_path, RATE, SECONDS)

    assert (run.lost, run.read) == (0, run.submitted)
    assert run.received > run.submitted  # the agent's traces of itself, too
    assert run.exit_code == 0
    assert run.peak_mib < MOST_MIB
    if run.rate < 0.95 * RATE:
        pytest.skip(f"nothing was lost, but this machine made no more than {run.rate:,.0f} records a second")
