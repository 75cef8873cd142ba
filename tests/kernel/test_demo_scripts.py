# SPDX-License-Identifier: Apache-2.0
"""The short demos, run as a user runs them: one half is traced, the other is not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import machine
import pytest

from ebpftrace.demos.scripts import SCRIPTS, kernel_spans_below
from ebpftrace.viewer import load
from ebpftrace.viewer.check import check_spans

DEMO = [sys.executable, "-P", "-m", "ebpftrace.cli.main", "demo"]
TRIES = 3  # on a machine that has no CPU to spare a quota is never used up


def demo(name, directory, prefix=(), **env):
    """Run a demo to its end in `directory`."""
    command = [*prefix, *DEMO, name, "--output", "trace.jsonl"]
    return subprocess.run(
        command, cwd=directory, env={**os.environ, **env}, capture_output=True, text=True, timeout=90, check=False
    )


def groups():
    """Control groups of demos."""
    return [path for path in Path("/sys/fs/cgroup").rglob("ebpftrace-demo-*") if path.is_dir()]


def below(spans, name):
    """The kernel's spans directly below the one span of that name."""
    [parent] = [span for span in spans if span.name == name and not span.kernel]
    return [span for span in spans if span.kernel and span.parent_id == parent.span_id]


@pytest.mark.parametrize("name", SCRIPTS)
def test_halves(name, tmp_path):
    """Each demo's trace has kernel spans below its traced half, none below the other, and is all that is left of it."""
    for _ in range(TRIES):
        done = demo(name, tmp_path)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    spans = load(str(tmp_path / "trace.jsonl")).spans

    assert [] == check_spans(spans)
    for half in SCRIPTS[name].traced:
        assert kernel_spans_below(spans, half) > 0
        assert f"{kernel_spans_below(spans, half)} below '{half}'" in " ".join(done.stdout.split())
    for half in SCRIPTS[name].untraced:
        assert 0 == kernel_spans_below(spans, half)
    assert ["trace.jsonl"] == [path.name for path in tmp_path.iterdir()]
    assert [] == groups()


def test_sched(tmp_path):
    """The traced sleep is one wait of 123 ms in clock_nanosleep, between a switch and a wake-up."""
    done = demo("sched", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    spans = below(load(str(tmp_path / "trace.jsonl")).spans, "traced sleep")
    [slept] = [span for span in spans if span.name == "sleep"]

    assert {"sched_switch", "sched_wakeup", "sleep"} <= {span.name for span in spans}
    assert "clock_nanosleep" == slept.attributes["ebpftrace.sched.syscall"]
    assert slept.duration_ns == pytest.approx(123_000_000, rel=0.3)


def test_cfs_throttling(tmp_path):
    """Below the traced loop there is nothing but throttled periods; the untraced one was throttled as well."""
    for _ in range(TRIES):
        done = demo("cfs-throttling", tmp_path)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        spans = load(str(tmp_path / "trace.jsonl")).spans
        [untraced] = [span for span in spans if span.name == "untraced busy loop"]
        if done.returncode == 0 and untraced.breakdown.get("throttled"):
            break

    assert {"cfs_throttle"} == {span.name for span in below(spans, "traced busy loop")}
    assert untraced.breakdown["throttled"] > 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_refused(name, tmp_path):
    """Where the kernel refuses, the reason is on stderr, the exit code is 3 and an older trace stays."""
    if not shutil.which("setpriv"):
        pytest.skip("there is no setpriv(1) to drop capabilities with")
    (tmp_path / "trace.jsonl").write_text("an older trace")
    done = demo(name, tmp_path, prefix=("setpriv", "--bounding-set", "-all"))

    assert done.returncode == 3, done.stdout + done.stderr
    assert "CAP_BPF" in done.stderr
    assert "an older trace" == (tmp_path / "trace.jsonl").read_text()
    assert [] == groups()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(tmp_path, number, code):
    """Ctrl-C and SIGTERM in the middle leave no control group, no process and no file."""
    process = subprocess.Popen([*DEMO, "cfs-throttling", "--output", "trace.jsonl"], cwd=tmp_path)
    machine.until(groups)
    time.sleep(0.3)
    process.send_signal(number)
    process.wait(timeout=20)

    assert code == process.returncode
    assert [] == groups()
    assert [] == list(tmp_path.iterdir())
