# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ebpftrace.viewer.check import check

MS = 1_000_000
T0 = 1_700_000_000 * 10**9
REPORT = Path(__file__).parent.parent / "data" / "viewer_report.jsonl"


def span(span_id, parent="", start=0, end=100, trace=1, **attributes):
    return {
        "traceId": f"{trace:032x}",
        "spanId": f"{span_id:016x}",
        "parentSpanId": f"{parent:016x}" if parent else "",
        "name": f"s{span_id}",
        "startTimeUnixNano": str(T0 + int(start * MS)),
        "endTimeUnixNano": str(T0 + int(end * MS)),
        "attributes": [
            {"key": key, "value": {"intValue": str(v)} if isinstance(v, int) else {"stringValue": v}}
            for key, v in attributes.items()
        ],
    }


def kernel(*args, **kwargs):
    return span(*args, **kwargs, **{"ebpftrace.program": "sched"})


def lines(*spans):
    return [json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]}) + "\n" for one in spans]


def kinds(*spans, **options):
    return [problem.kind for problem in check(lines(*spans), **options)]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([span(1), span(2, 1, 10, 120), kernel(3, 1, 0, 100)], []),
        ([span(1), kernel(2, 1, -0.9, 100.9)], []),
        ([span(1), kernel(2, 1, -1.1, 50)], ["outside-parent"]),
        ([span(1), kernel(2, 1, 50, 102)], ["outside-parent"]),
        ([span(1), kernel(2, 9)], ["parent-missing"]),
        ([span(1), span(2, 1, trace=2)], ["trace-id-differs"]),
        ([span(1), span(1, start=5)], ["duplicate-span-id"]),
        ([span(1, start=50, end=20)], ["ends-before-start"]),
        ([span(1, 2), span(2, 1)], ["circle"]),
        ([span(1, **{"ebpftrace.time.disk": 60 * MS, "ebpftrace.time.on_cpu": 39 * MS})], []),
        ([span(1, **{"ebpftrace.time.disk": 60 * MS, "ebpftrace.time.on_cpu": 37 * MS})], ["breakdown-sum"]),
        ([span(1, **{"ebpftrace.time.disk": 103 * MS})], ["breakdown-sum"]),
        ([span(1, end=1, **{"ebpftrace.time.disk": 850_000})], []),
        ([span(1, end=1, **{"ebpftrace.time.disk": 750_000})], ["breakdown-sum"]),
        ([span(1, **{"ebpftrace.time.on_cpu": 5 * MS, "ebpftrace.time.suspended": 20 * MS})], []),
    ],
)
def test_each_broken_promise_is_found_and_nothing_else(spans, expected):
    """A good trace has no problems; each fault is reported once, by its kind."""
    assert expected == kinds(*spans)


def test_tolerance_is_a_parameter():
    """How far a kernel span may reach out of its parent can be chosen."""
    assert [] == kinds(span(1), kernel(2, 1, -5, 100), tolerance_ns=5 * MS)


def test_problem_says_which_span_and_by_how_much():
    """The message holds what one needs to find the span."""
    (problem,) = check(lines(span(1), kernel(2, 1, 50, 102)))

    expected = (
        f"outside-parent: trace {1:032x} span {2:016x}: kernel span 's2' ends 2 ms after its parent span 's1' does"
    )
    assert expected == str(problem)


def run(*arguments):
    command = [sys.executable, "-m", "ebpftrace.viewer.check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_module_prints_a_summary_and_fails_on_problems(tmp_path):
    """The command counts traces and spans by name; its exit code tells whether there were problems."""
    good, bad, none = tmp_path / "good", tmp_path / "bad", tmp_path / "none"
    good.write_text("".join(lines(span(1), kernel(2, 1), kernel(3, 1))))
    bad.write_text("".join(lines(span(1), kernel(2, 9))))
    done = run(str(good))

    assert 0 == done.returncode
    assert "traces: 1\napplication spans: 1\n" in done.stdout
    assert "kernel spans: 2\n" in done.stdout
    assert [1, 1] == [run(str(bad)).returncode, run(str(none)).returncode]
    assert "parent-missing" in run(str(bad)).stdout
