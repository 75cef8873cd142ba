# SPDX-License-Identifier: Apache-2.0
"""The program `cfs-throttling` by tracepoints and by functions of the kernel: the same periods of the same group."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from harness import run
from test_kernel_cfs import SPIN, statistics
from variants import Variant, why_no_fentry

MS = 1_000_000


def observed(lifted):
    """What each variant makes of a busy process with a fifth of a CPU, whose quota may be lifted while it has none."""
    from ebpftrace.demos.cgroup import CpuQuota

    with ExitStack() as stack:
        variants = {
            name: stack.enter_context(Variant("cfs-throttling", extras=extras, trace_all=True))
            for name, extras in (("tracepoints", False), ("functions", True))
        }
        quota = stack.enter_context(CpuQuota(20))
        before = statistics(quota.path)
        busy = subprocess.Popen([sys.executable, "-S", "-c", SPIN, "2"])
        try:
            quota.add(busy.pid)
            if lifted:
                lift(quota, before["periods"] + 5)
            busy.wait()
        finally:
            busy.kill()
            busy.wait()
        time.sleep(0.3)  # the last period ends with its group's next timer
        return {
            "counted": {key: value - before[key] for key, value in statistics(quota.path).items()},
            **{name: periods(variant, quota.path.stat().st_ino) for name, variant in variants.items()},
            "hooks": {name: variant.hooks() for name, variant in variants.items()},
        }


def lift(quota, periods):
    """Give the group all it wants while it has nothing: late in a period that begins after so many."""
    while statistics(quota.path)["periods"] < periods:  # counted at a period's end
        time.sleep(0.001)
    time.sleep(0.06)
    if quota.version == 2:
        (quota.path / "cpu.max").write_text("max")
    else:
        (quota.path / "cpu.cfs_quota_us").write_text("-1")


def periods(variant, cgroup):
    """[start, end] of each period of a group, in ns, in their order."""
    return sorted(
        [span.start_ns, span.end_ns]
        for span in variant.spans()
        if span.attributes.get("ebpftrace.cfs.cgroup_id") == cgroup
    )


@pytest.fixture(autouse=True)
def fentry(bpf):
    """These need both variants."""
    reason = why_no_fentry()
    if reason:
        pytest.skip(f"there is only one variant here: {reason}")


def test_same_periods():
    """Both variants see the same periods, as many as the kernel counts, from the same beginning to the same end."""
    found = run(observed, False).value

    print(found)
    assert {"tp_btf"} == {hook.partition("/")[0] for hook in found["hooks"]["tracepoints"]}
    assert {"fentry/unthrottle_cfs_rq", "fexit/unthrottle_cfs_rq"} <= set(found["hooks"]["functions"])
    assert found["counted"]["periods"] > 5
    assert len(found["functions"]) == len(found["tracepoints"])
    pairs = list(zip(found["tracepoints"], found["functions"], strict=True))
    assert sorted(max(map(abs, map(int.__sub__, *pair))) for pair in pairs)[len(pairs) // 2] < MS
    for one, other in pairs:  # an emulated machine stands still for a while whenever it comes to new code
        assert one == pytest.approx(other, abs=20 * MS)
    total = sum(end - start for start, end in found["functions"])
    assert total == pytest.approx(found["counted"]["ns"], rel=0.1)


def test_lifted_quota():
    """A period that ends because the quota is lifted has no timer: only the function tells it."""
    found = run(observed, True).value

    print(found)
    assert len(found["functions"]) == len(found["tracepoints"]) + 1
    matched = [
        any(one == pytest.approx(other, abs=20 * MS) for other in found["tracepoints"]) for one in found["functions"]
    ]
    assert [True] * (len(matched) - 1) + [False] == matched
