# SPDX-License-Identifier: Apache-2.0
"""`opentelemetry-instrument`: unmodified programs, for which it starts the library as it starts any instrumentation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ebpftrace.viewer import build_traces, load

COMMAND = Path(sys.executable).with_name("opentelemetry-instrument")
pytestmark = [
    pytest.mark.usefixtures("bpf"),
    pytest.mark.skipif(not COMMAND.exists(), reason="opentelemetry-instrument is not installed"),
]

# a Flask application and its client, who asks over the network; the SDK, its exporter and the spans are all by OTEL_*
FLASK = """
    import threading, time, urllib.request
    from flask import Flask
    from werkzeug.serving import make_server
    app = Flask("shop")

    @app.get("/slow")
    def slow():
        time.sleep(0.02)
        return "done"

    server = make_server("127.0.0.1", 0, app)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for _ in range(3):
        assert urllib.request.urlopen(f"http://127.0.0.1:{server.port}/slow", timeout=20).read() == b"done"
    server.shutdown()
"""

STATE = """
    import sys, ebpftrace
    print(ebpftrace.stats()["active"], "ebpftrace.kernel" in sys.modules, ebpftrace.stats()["reason"])
"""


@pytest.fixture
def instrument(tmp_path):
    """Return a function that runs a program under opentelemetry-instrument."""

    def call(code, *, prefix=(), **env):
        program = tmp_path / "app.py"
        program.write_text(textwrap.dedent(code))
        done = subprocess.run(
            [*prefix, COMMAND, sys.executable, program],
            cwd=tmp_path,
            env={**os.environ, **EXPORT, **env},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert 0 == done.returncode, done.stderr
        return done

    return call


EXPORT = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


def flask_traces(instrument, tmp_path, **env):
    """The traces of the Flask program, by its own SDK and into a file."""
    instrument(FLASK, EBPFTRACE_OUTPUT=str(tmp_path / "t.jsonl"), **env)
    return build_traces(load(tmp_path / "t.jsonl").spans)


def test_flask(instrument, tmp_path):
    """Every request of a Flask program has kernel spans in its own trace, below its own span, and a breakdown."""
    traces = flask_traces(instrument, tmp_path, EBPFTRACE_ENABLE="sampled")

    assert ["GET /slow"] * 3 == [trace.root.name for trace in traces]
    for trace in traces:
        below = [span for span in trace.spans if span.kernel and span.parent_id == trace.root.span_id]
        assert "sleep" in {span.name for span in below}
        assert trace.root.breakdown["sleep"] > 19_000_000


def test_unsampled(instrument, tmp_path):
    """Of requests of which some are sampled, those have kernel spans and the others none."""
    sampled, unsampled = f"{7:032x}", f"{8:032x}"
    code = FLASK.replace("for _ in range(3):", f'for parent in ("{sampled}-{3:016x}-01", "{unsampled}-{3:016x}-00"):')
    code = code.replace('/slow", timeout', '/slow", headers={"traceparent": "00-" + parent}), timeout')
    code = code.replace("urlopen(f", "urlopen(urllib.request.Request(f")
    instrument(code, EBPFTRACE_OUTPUT=str(tmp_path / "t.jsonl"), EBPFTRACE_ENABLE="sampled")
    spans = load(tmp_path / "t.jsonl").spans

    assert {sampled} == {span.trace_id for span in spans}
    assert "sleep" in {span.name for span in spans if span.kernel}


def test_default(instrument, tmp_path):
    """By default there is the breakdown, and no kernel span."""
    traces = flask_traces(instrument, tmp_path)

    assert [1, 1, 1] == [len(trace.spans) for trace in traces]
    assert all(trace.root.breakdown["sleep"] > 19_000_000 for trace in traces)


def test_started_once(instrument, tmp_path):
    """Under `ebpftrace run` the library is started once, by what it was told there."""
    command = (sys.executable, "-m", "ebpftrace.cli.main", "run", "--enable", "sampled", "--")
    said = instrument(
        """
        import json, logging, ebpftrace
        from ebpftrace.runtime import session
        print(json.dumps([ebpftrace.stats()["active"], session._session.settings.enable]))
        """,
        prefix=command,
    )

    assert [True, ["sampled"]] == json.loads(said.stdout)
    assert "" == said.stderr


@pytest.mark.parametrize("setting", ["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "OTEL_SDK_DISABLED"])
def test_not_started(instrument, setting):
    """The variables that turn OpenTelemetry's instrumentations off, or the SDK, keep the library out."""
    value = "flask, ebpftrace" if setting == "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS" else "true"
    said = instrument(STATE, **{setting: value})

    assert "False False start() was not called\n" == said.stdout


def test_disabled(instrument):
    """With EBPFTRACE_DISABLED it starts to nothing."""
    said = instrument(STATE, EBPFTRACE_DISABLED="1")

    assert said.stdout.startswith("False False ebpftrace is not available: the setting `disabled`"), said.stdout


def test_started(instrument):
    """Nothing but being installed is needed."""
    assert "True True \n" == instrument(STATE).stdout
