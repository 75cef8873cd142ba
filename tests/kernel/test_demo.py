# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace demo`, run as a user runs it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ebpftrace.viewer import build_traces, load
from ebpftrace.viewer.check import check_spans

pytest.importorskip("flask", reason="the demo's own dependencies: pip install 'ebpftrace[demo]'")

DEMO = [sys.executable, "-P", "-m", "ebpftrace.cli.main", "demo"]
SUM_ERROR = 0.05


def demo(directory, *arguments, prefix=(), **env):
    """Run the demo to its end in `directory`."""
    return subprocess.run(
        [*prefix, *DEMO, *arguments],
        cwd=directory,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def left_over(directory):
    """Files, control groups and processes of a demo; nothing, when it cleaned up."""
    groups = [path for path in Path("/sys/fs/cgroup").rglob("ebpftrace-demo-*") if path.is_dir()]
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # it ended
            continue
        if b"ebpftrace.demos" in command and os.fsencode(directory) in command:
            processes.append(command)
    return [*directory.glob(".*"), *groups, *processes]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, bpf):
    """One run for several tests: what it printed, its spans, where it ran."""
    directory = tmp_path_factory.mktemp("demo")
    done = demo(directory, "--output", "out/trace.jsonl")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done, load(str(directory / "out/trace.jsonl")).spans, directory


def test_leaves_nothing(finished):
    """After a run there are its trace and nothing else: no process, no control group, no scratch file."""
    done, _, directory = finished

    assert "" == done.stderr
    assert [] == left_over(directory)
    assert [] == left_over(directory / "out")
    assert ["trace.jsonl"] == [path.name for path in (directory / "out").iterdir()]


def test_trace(finished):
    """Each order is one whole trace: one root, no stranger, kernel spans inside their parents, sums that add up."""
    _, spans, _ = finished
    traces = build_traces(spans)

    assert [] == check_spans(spans)
    assert len(traces) >= 5
    for trace in traces:
        assert ["POST /orders"] == [root.name for root in trace.roots]
        assert {"check stock", "GET /inventory/<sku>", "reserve items", "sign invoice", "write order log"} <= {
            span.name for span in trace.spans
        }
        parts = sum(trace.root.breakdown.values())
        assert abs(parts - trace.root.duration_ns) <= SUM_ERROR * trace.root.duration_ns


def test_causes(finished):
    """The quota shows as throttled time, the order log as disk time, the loopback call as network, gzip as a span."""
    _, spans, _ = finished
    own = [span for span in spans if not span.kernel]
    kernel = {span.name for span in spans if span.kernel}

    assert {"throttled", "disk", "network", "run_queue", "lock", "exec gzip"} <= kernel
    assert max(span.breakdown.get("throttled", 0) for span in own) > 50_000_000
    assert any("disk" in span.breakdown for span in own if span.name == "write order log")
    assert all(span.breakdown for span in own)


def test_says_why(finished):
    """The verdict, the checks and where to look on are on stdout."""
    done, spans, _ = finished
    words = " ".join(done.stdout.replace("▎", " ").split())

    assert "of this request" in words
    assert "throttled by its CPU quota" in words
    assert "every parent is there" in words
    assert "nothing was lost" in words
    [trace_id] = re.findall(r"ebpftrace show --trace (\w+)", words)
    assert any(span.trace_id.startswith(trace_id) for span in spans)


def test_quota_is_the_main_cause(finished):
    """The orders were slow because of the quota, which is what the demo is to show.

    All of them together: a single one may have waited most of its time for a lock whose holder was throttled.
    """
    _, spans, _ = finished
    parts = Counter()
    for trace in build_traces(spans):
        parts.update(trace.root.breakdown)
    del parts["run_queue"]  # that is this machine's neighbours

    assert "throttled" == parts.most_common(1)[0][0]


@pytest.mark.parametrize("how", ["capabilities", "switch"])
def test_recorded(tmp_path, how):
    """Where the kernel refuses, it says why, shows the recorded trace marked as such, and exits with 3."""
    (tmp_path / "trace.jsonl").write_text("an older trace")
    if how == "switch":
        done = demo(tmp_path, "--output", "trace.jsonl", EBPFTRACE_DISABLED="1")
    else:
        if not shutil.which("setpriv"):
            pytest.skip("there is no setpriv(1) to drop capabilities with")
        done = demo(tmp_path, "--output", "trace.jsonl", prefix=("setpriv", "--bounding-set", "-all"))

    assert done.returncode == 3, done.stderr
    assert ("EBPFTRACE_DISABLED" if how == "switch" else "CAP_BPF") in done.stderr
    assert done.stdout.count("RECORDED") == 2
    assert "throttled by its CPU quota" in " ".join(done.stdout.replace("▎", " ").split())
    assert "an older trace" == (tmp_path / "trace.jsonl").read_text()
    assert [] == left_over(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(tmp_path, number, code):
    """Ctrl-C and SIGTERM in the middle leave nothing behind, not even a half-written trace."""
    process = subprocess.Popen([*DEMO, "--output", "trace.jsonl"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "customers order" in line:
            break
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=20)

    assert code == process.returncode
    assert [] == left_over(tmp_path)
    assert [] == list(tmp_path.iterdir())
