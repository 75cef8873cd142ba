# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ebpftrace.demos import scripts
from ebpftrace.demos.http_service.run import NotTracedError
from ebpftrace.demos.scripts import SCRIPTS, Script, broken_promises, kernel_spans_below, run
from ebpftrace.errors import CommandError
from ebpftrace.viewer.trace import Span

SCRIPT = Script("sched", "about", "see", ("traced",), ("untraced",))


def span(number, name, parent=0, kernel=False):
    """A span of one trace."""
    attributes = {"ebpftrace.program": "sched"} if kernel else {}
    ids = {"trace_id": "1", "span_id": str(number), "parent_id": str(parent) if parent else ""}
    return Span(**ids, name=name, service="", start_ns=1, end_ns=2, attributes=attributes)


ROOT, TRACED, UNTRACED = span(1, "root"), span(2, "traced", 1), span(3, "untraced", 1)


def test_kept_promise():
    """Kernel spans at any depth below the traced half, and none below the other, are what a demo promises."""
    spans = [ROOT, TRACED, UNTRACED, span(4, "phase", 2), span(5, "sched_switch", 4, kernel=True)]

    assert [] == broken_promises(SCRIPT, spans)
    assert (1, 0, 1, None) == tuple(kernel_spans_below(spans, name) for name in ("traced", "untraced", "root", "other"))


def test_broken_promise():
    """A traced half without kernel spans, an untraced one with some, and a missing half are each told."""
    assert ["'traced' has no kernel spans below it", "'untraced' has 1 kernel spans below it"] == broken_promises(
        SCRIPT, [ROOT, TRACED, UNTRACED, span(5, "sched_switch", 3, kernel=True)]
    )
    assert ["there is no span 'untraced'"] == broken_promises(
        SCRIPT, [ROOT, TRACED, span(5, "sched_switch", 2, kernel=True)]
    )


def test_circle():
    """Spans that are each other's parents end the search."""
    spans = [span(1, "traced", 2), span(2, "b", 1), span(3, "k", 4, kernel=True), span(4, "k", 3, kernel=True)]

    assert 0 == kernel_spans_below(spans, "traced")


@pytest.mark.parametrize("name", ["sched", "cfs-throttling"])
def test_installed(name):
    """A demo's program is in the installed package, and is the one of the source tree."""
    directory = name.replace("-", "_")
    source = Path(__file__).parents[2] / f"demos/{directory}/demo.py"

    assert source.read_text() == SCRIPTS[name].path().read_text()


def test_not_installed():
    """A package that was not built says so."""
    with pytest.raises(CommandError, match="build the package"):
        replace(SCRIPT, name="no-such-demo").path()


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Have a demo run some other code; returns a function that does, and the output's path."""

    def start(code):
        path = tmp_path / "demo.py"
        path.write_text(f"import sys, time\n{code}\n")
        monkeypatch.setattr(Script, "path", lambda self: path)
        run(SCRIPT, tmp_path / "trace.jsonl")

    return start, tmp_path / "trace.jsonl"


def test_output(program):
    """What the program wrote replaces the output, and nothing else is left beside it."""
    start, output = program
    output.write_text("an older trace")
    start("open(sys.argv[2], 'w').write('{}')")

    assert "{}" == output.read_text()
    assert ["demo.py", "trace.jsonl"] == sorted(path.name for path in output.parent.iterdir())


def test_refused(program):
    """Exit code 3 is a machine that cannot trace, for the reason on stderr; an older output stays."""
    start, output = program
    output.write_text("an older trace")
    with pytest.raises(NotTracedError) as caught:
        start("print('kernel tracing is off: no CAP_BPF', file=sys.stderr); sys.exit(3)")

    assert "no CAP_BPF" == caught.value.reason
    assert "an older trace" == output.read_text()


@pytest.mark.parametrize(("code", "message"), [("sys.exit('oh no')", "exit code 1"), ("", "wrote no spans")])
def test_failed(program, code, message):
    """A program that fails, or writes nothing, is an error with what it said."""
    start, _ = program
    with pytest.raises(CommandError, match=message) as caught:
        start(code)

    assert ["oh no" if code else "it wrote nothing to stderr"] == caught.value.__notes__


def test_too_long(program, monkeypatch):
    """A program that does not end is ended, by way of its `finally`."""
    start, output = program
    monkeypatch.setattr(scripts, "_LIMIT_S", 0.5)
    began = time.monotonic()
    with pytest.raises(CommandError, match="did not end within"):
        start(f"try: time.sleep(60)\nfinally: open({str(output.parent / 'ended')!r}, 'w')")

    assert time.monotonic() - began < 10
    assert (output.parent / "ended").exists()


def test_help():
    """Each program says what it does without tracing anything."""
    for script in map(SCRIPTS.get, ("sched", "cfs-throttling")):
        done = subprocess.run([sys.executable, script.path(), "--help"], capture_output=True, text=True, check=True)
        assert "--output FILE" in done.stdout
