# SPDX-License-Identifier: Apache-2.0
"""BCC itself: tools of Debian's bpfcc-tools as they are, and a program with our header."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bcc_spans import spans_of
from compiler import COMPILING_S, error_of_bcc

DEMOS = Path(__file__).parent.parent.parent / "demos/bcc"

# without anything of ours
SMALLEST = """
from ebpftrace.bcc import load_bcc

load_bcc().BPF(text="#include <linux/sched.h>\\nint nothing(void *ctx) { return 0; }")
"""

pytestmark = pytest.mark.timeout(600)


def repeat(action, process):
    """Do something four times a second as long as a process lives."""

    def loop():
        while process.poll() is None:
            action()
            time.sleep(0.25)

    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def run_tool(arguments, action, *, enough, env=None):
    """Run a tool, unedited, with `action` going on; stop it by SIGTERM after `enough` lines. (output, summary)."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "ebpftrace.bcc", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})},
    )  # fmt: skip
    watchdog = threading.Timer(COMPILING_S, process.kill)
    watchdog.start()
    worker = repeat(action, process)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if len(lines) == enough:
            process.terminate()
    errors = process.stderr.read()
    code = process.wait()
    watchdog.cancel()
    worker.join()
    reason = error_of_bcc(errors, f"{arguments[-1]}-bpfcc") if code != 143 else ""
    if reason:
        pytest.skip(f"{arguments[-1]} by itself does not compile here: {reason}")
    assert 143 == code, errors
    return lines, errors


def test_opensnoop(tmp_path):
    """opensnoop, its BPF source and its Python as Debian has them: its lines as always, and a span for each record."""
    output, config = tmp_path / "spans.jsonl", DEMOS / "opensnoop.yaml"
    arguments = ["--config", config, "--output", output, "opensnoop"]
    begun = time.time_ns()
    lines, errors = run_tool(arguments, Path("/etc/hostname").read_text, enough=40)
    spans = [span for span in spans_of(output) if span["attributes"].get("file.path") == "/etc/hostname"]
    summary = re.search(r"ebpftrace: (\d+) records, (\d+) spans, 0 records lost; (\d+) spans exported, 0 not", errors)

    assert lines[0].split() == ["PID", "COMM", "FD", "ERR", "PATH"]
    assert summary, errors
    assert summary[1] == summary[2] == summary[3] == str(len(spans_of(output)))
    assert any(line.split()[-1] == "/etc/hostname" for line in lines)
    assert {"open"} == {span["name"] for span in spans}
    assert {"root"} == {span["attributes"]["user.name"] for span in spans}
    assert all(int(span["attributes"]["opensnoop.result"]) >= 0 for span in spans)
    assert all(begun < int(span["startTimeUnixNano"]) < time.time_ns() for span in spans)


def test_tcplife(tmp_path):
    """tcplife, as it is: spans with the time that connections lasted, over both of its buffers' configurations."""
    output, config = tmp_path / "spans.jsonl", DEMOS / "tcplife.yaml"
    server = socket.create_server(("127.0.0.1", 0))

    def connect():
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        client.sendall(b"hello")
        time.sleep(0.2)
        client.close()
        peer.close()

    arguments = ["--config", config, "--stamp", "end", "--output", output, "tcplife"]
    with server:
        run_tool(arguments, connect, enough=7)
        port = server.getsockname()[1]
    spans = spans_of(output)
    durations = [int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"]) for span in spans]

    assert port
    assert {"tcp connection"} == {span["name"] for span in spans}
    assert {"127.0.0.1"} == {span["attributes"]["network.peer.address"] for span in spans}
    assert 200_000_000 <= min(durations)
    assert max(durations) < 60_000_000_000


def test_header(tmp_path):
    """A BCC program with our header: what a span opens is below that span; what is opened outside makes none."""
    output = tmp_path / "spans.jsonl"
    done = subprocess.run([sys.executable, DEMOS / "opens.py", output], check=False, capture_output=True, text=True)
    reason = error_of_bcc(done.stderr, sys.executable, "-c", SMALLEST) if done.returncode else ""
    if reason:
        pytest.skip(f"no program compiles here: {reason}")
    assert 0 == done.returncode, done.stderr
    spans = spans_of(output)
    [greet] = [span for span in spans if span["name"] == "greet"]
    opened = [span for span in spans if span["name"] == "open"]

    assert {(greet["traceId"], greet["spanId"])} == {(span["traceId"], span["parentSpanId"]) for span in opened}
    assert ["/etc/hostname"] == [span["attributes"]["path"] for span in opened]
    assert all(
        int(greet["startTimeUnixNano"]) <= int(span["startTimeUnixNano"]) <= int(greet["endTimeUnixNano"])
        for span in opened
    )
    assert "'lost': {'buffer': 0, 'queue': 0}" in done.stdout
