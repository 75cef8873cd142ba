# SPDX-License-Identifier: Apache-2.0
"""A Flask service under gunicorn's gevent workers, which patch themselves after their fork."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from machine import PATIENCE, until

from ebpftrace.viewer import load

SHORT_MS, LONG_MS = 2, 30
EDGE_MS = 20  # between both: the kernel counts from when the thread is off the CPU, which is later than when it asked
REQUESTS = 60


def _get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=30 * PATIENCE) as response:
        return response.read().decode()


def _all_active(port):
    """Do a number of requests, which both workers take, say that the library runs?"""
    try:
        return all(_get(port, "active") == "True" for _ in range(12))
    except OSError:
        return False


def _serve(output, *options):
    """Gunicorn with two workers under concurrent requests, until it was told to end; returns its log."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "2", "-b", f"127.0.0.1:{port}", *options]
    service = subprocess.Popen(
        [*command, "green_service:app"],
        cwd=Path(__file__).parent,
        env={**os.environ, "EBPFTRACE_OUTPUT": str(output), "OTEL_BSP_SCHEDULE_DELAY": "600000"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert until(lambda: _all_active(port), 40, interval_s=0.2)
        with ThreadPoolExecutor(8) as pool:
            kinds = [SHORT_MS, LONG_MS] * (REQUESTS // 2)
            assert {"done"} == set(pool.map(lambda kind: _get(port, kind), kinds))
        service.send_signal(signal.SIGTERM)
        _, log = service.communicate(timeout=20 * PATIENCE)
    finally:
        service.kill()
        service.wait()
    assert service.returncode == 0, log
    return log


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_gevent_workers(tmp_path, options):
    """Under concurrent requests kernel spans are under the right spans only; the last come out at a worker's end."""
    output = tmp_path / "spans.jsonl"

    log = _serve(output, *options)
    spans = load(output).spans
    names = {span.span_id: span.name for span in spans if not span.kernel}
    sleeps = [(names[span.parent_id], span.duration_ns / 1e6) for span in spans if span.kernel and span.name == "sleep"]
    short = [wall for name, wall in sleeps if name == f"sleep {SHORT_MS}"]
    long = [wall for name, wall in sleeps if name == f"sleep {LONG_MS}"]

    assert REQUESTS == len([name for name in names.values() if name != "active"])
    assert short
    assert long
    assert [] == [wall for wall in short if wall >= EDGE_MS]
    assert [] == [wall for wall in long if wall < EDGE_MS]
    assert "ebpftrace" not in log
    assert "WORKER TIMEOUT" not in log
