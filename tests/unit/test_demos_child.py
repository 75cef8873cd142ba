# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ebpftrace.demos.child import Child
from ebpftrace.errors import CommandError


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that a child can run; returns its name."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(code):
        (tmp_path / "child_module.py").write_text("import json, os, signal, sys, time\n" + code)
        return "child_module"

    return write


def gone(pid):
    """Nothing has this process id any more, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


def test_messages(module):
    """Lines come one by one, however they were written, and the end of its input ends the child."""
    name = module('print(\'{"a": 1}\\n{"a": 2}\', flush=True); sys.stdin.read(); print(\'{"a": 3}\')')
    with Child("helper", name, []) as child:
        assert [{"a": 1}, {"a": 2}] == [child.message(10), child.message(10)]
        child.end_input()
        assert {"a": 3} == child.message(10)

    assert gone(child.pid)


def test_failure_shows_stderr(module):
    """A child that ends too early is an error with its exit code and what it wrote to stderr."""
    with Child("helper", module("sys.exit('no such port')"), []) as child, pytest.raises(CommandError) as caught:
        child.message(10)

    assert "the demo's helper ended with exit code 1" == str(caught.value)
    assert "no such port" in caught.value.__notes__[0]


def test_silence(module):
    """A child that says nothing in time is an error, and it is ended with the block."""
    with (
        pytest.raises(CommandError, match="said nothing for 0 s"),
        Child("helper", module("time.sleep(60)"), []) as child,
    ):
        child.message(0.2)

    assert gone(child.pid)


def test_stubborn(module):
    """A child that ignores the end of its input and SIGTERM is killed."""
    name = module("signal.signal(signal.SIGTERM, signal.SIG_IGN); print('{}', flush=True); time.sleep(60)")
    start = time.monotonic()
    child = Child("helper", name, [])
    child.message(10)
    child.__exit__(KeyboardInterrupt, None, None)

    assert gone(child.pid)
    assert time.monotonic() - start < 10


def test_environment(module, monkeypatch):
    """The user's own OTEL_* and EBPFTRACE_* settings do not reach a demo; the switch that turns ebpftrace off does."""
    for name in ("OTEL_SDK_DISABLED", "EBPFTRACE_ENABLE", "EBPFTRACE_DISABLED"):
        monkeypatch.setenv(name, "1")
    name = module("print(json.dumps([name for name in os.environ if name.startswith(('OTEL_', 'EBPFTRACE_'))]))")
    with Child("helper", name, []) as child:
        assert ["EBPFTRACE_DISABLED"] == child.message(10)

    assert "1" == os.environ["OTEL_SDK_DISABLED"]
