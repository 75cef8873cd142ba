# SPDX-License-Identifier: Apache-2.0
"""How `ebpftrace agent` says that it cannot start; nothing here gets as far as the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

CLOSED = "http://127.0.0.1:9"  # nobody listens on the port of "discard"


def failed(*arguments, **environment):
    """Run an agent that cannot start; exit code, lines on stderr, seconds."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "ebpftrace.cli.main", "agent", "--listen", "none", *arguments],
        env={**os.environ, "OTEL_TRACES_EXPORTER": "none", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr.splitlines(), time.monotonic() - start


def test_reason_first():
    """The reason is told before the trace of the start is sent, and a collector that is down is not waited for long."""
    environment = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": CLOSED}
    code, said, seconds = failed("--config-names", "exce-trace", "--shutdown-timeout", "50", **environment)

    assert 2 == code
    assert "did you mean 'exec-trace'" in said[0]
    assert seconds < 20


@pytest.mark.parametrize("form", ["text", "json"])
def test_reason_once(form):
    """The reason is one line, in the format of the log."""
    code, said, _ = failed("--config-names", "exce-trace", "--log-format", form)

    assert (2, 1) == (code, len(said))
    if form == "json":
        assert "the agent does not start: exce-trace: " in json.loads(said[0])["message"]
