# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from importlib import resources

import pytest

from ebpftrace.cli.main import main
from ebpftrace.viewer import build_traces
from ebpftrace.viewer.check import check_spans
from ebpftrace.viewer.otlp import parse


def test_list(capsys):
    """--list names each demo and what it is about."""
    assert 0 == main(["demo", "--list"])
    assert "http-service" in capsys.readouterr().out


def test_unknown_name(capsys):
    """A wrong name is wrong usage, and the right names are told."""
    assert 2 == main(["demo", "nothing"])
    assert "there is no demo 'nothing'; there are: http-service, sock, sched, cfs-throttling" in capsys.readouterr().err


def test_missing_dependency(capsys, monkeypatch, tmp_path):
    """Without the demo's own packages the message is the command that installs them."""
    monkeypatch.setitem(sys.modules, "flask", None)

    assert 2 == main(["demo", "--output", str(tmp_path / "trace.jsonl")])
    said = capsys.readouterr().err
    assert "needs flask: " in said
    assert "pip install 'ebpftrace[demo]'" in said


def test_output_is_a_directory(capsys, tmp_path):
    """An --output that cannot be a file is refused before anything is started."""
    assert 2 == main(["demo", "--output", str(tmp_path)])
    assert "this is a directory" in capsys.readouterr().err


def test_recorded_trace():
    """What is shown where the demo cannot run keeps the same promises as a live trace, and tells the same story."""
    recorded = resources.files("ebpftrace.demos") / "recorded/http_service.jsonl"
    text = recorded.read_bytes()
    spans = parse(text.splitlines(keepends=True)).spans
    breakdown = build_traces(spans)[0].root.breakdown

    assert [] == check_spans(spans)
    assert "throttled" == max(breakdown, key=breakdown.get)
    assert len(text) < 300_000


@pytest.mark.parametrize("secret", [b'"host.name"', b'"host.id"', b'"os.description"', b"/home/"])
def test_recorded_trace_is_anonymous(secret):
    """The recorded trace names neither the machine nor the user that it was made by."""
    recorded = resources.files("ebpftrace.demos") / "recorded/http_service.jsonl"

    assert secret not in recorded.read_bytes()
