# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import signal
import sys

import bcc_support
import pytest
from bcc_support import Bpf, Event, PerfEventArray, RingBuf

from ebpftrace.bcc import __main__ as command
from ebpftrace.bcc.tap import Taps

TOOL = """
import sys
from bcc import BPF

bpf = BPF(events=("perf", Event), rare=("ring", Event))
bpf["events"].open_perf_buffer(lambda cpu, data, size: print("event", size))
bpf["rare"].open_ring_buffer(lambda ctx, data, size: print("rare", size))
for number in range(3):
    bpf.submit("events", Event(number, 5, -2))
bpf.submit("rare", Event(9, 9, 9))
print(sys.argv[1:])
{end}
"""


@pytest.fixture
def bcc(monkeypatch):
    """The stand-in as the module `bcc`, and the machine's signals as they were afterwards."""
    module = bcc_support.module()
    monkeypatch.setitem(sys.modules, "bcc", module)
    monkeypatch.setattr(sys, "argv", sys.argv)
    before = signal.getsignal(signal.SIGTERM)
    yield module
    signal.signal(signal.SIGTERM, before)


def run(tmp_path, *arguments, end=""):
    """Run the tool; exit code, and the spans' names and attributes."""
    tool, output = tmp_path / "toolsnoop-bpfcc", tmp_path / "spans.jsonl"
    tool.write_text("from bcc_support import Event\n" + TOOL.format(end=end))
    code = command.main(["--output", str(output), *arguments, str(tool), "-x", "--output", "mine"])
    return code, spans(output)


def spans(output):
    """Name and attributes of each span in a file."""
    found = []
    for line in output.read_text().splitlines() if output.exists() else ():
        for resource in json.loads(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                found += [
                    (span["name"], {each["key"]: [*each["value"].values()][0] for each in span["attributes"]})  # noqa: RUF015
                    for span in scope["spans"]
                ]
    return found


def test_tool(bcc, tmp_path, capsys):
    """A tool runs as always, with its own arguments; each record of each of its buffers is a span too."""
    code, found = run(tmp_path)
    said = capsys.readouterr()

    assert 0 == code
    assert ["event 16"] * 3 + ["rare 16", "['-x', '--output', 'mine']"] == said.out.splitlines()
    assert 4 == len(found)
    assert ("toolsnoop", {"ebpftrace.program": "toolsnoop", "ts": "0", "pid": "5", "result": "-2"}) == found[0]
    assert "ebpftrace: 4 records, 4 spans, 0 records lost; 4 spans exported, 0 not\n" == said.err


def test_file(bcc, tmp_path):
    """With a file, what it describes makes spans, as it says, and other buffers make none."""
    config = tmp_path / "calls-trace.yaml"
    config.write_text("tracing: {spans: [{name: call, ringbuf: rare, struct: any, labels: [{name: pid}]}]}\n")
    code, found = run(tmp_path, "--config", str(config))

    assert (0, [("call", {"ebpftrace.program": "calls", "pid": "9"})]) == (code, found)


@pytest.mark.parametrize(
    ("end", "code"),
    [("exit()", 0), ("exit(3)", 3), ("sys.exit('no')", 1), ("raise KeyboardInterrupt", 130)],
)
def test_exit_codes(bcc, tmp_path, end, code):
    """However a tool ends, its exit code is ours, and its spans are exported."""
    found_code, found = run(tmp_path, end=end)

    assert (code, 4) == (found_code, len(found))


def test_terminated(bcc, tmp_path):
    """SIGTERM ends the tool, and loses no span."""
    code, found = run(tmp_path, end="import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)")

    assert (143, 4) == (code, len(found))


@pytest.mark.parametrize(
    ("inside", "code"),
    [("os.kill(os.getpid(), signal.SIGTERM); time.sleep(1)", 143), ("exit(4)", 4), ("raise KeyboardInterrupt", 130)],
)
def test_ended_in_a_callback(bcc, tmp_path, inside, code):
    """What ends the tool while BCC calls it back ends it when BCC returns from polling, not never."""
    end = f"""
import os, signal, time
def last(*args): {inside}
bpf["events"].open_perf_buffer(last)
bpf.submit("events", Event(7, 7, 7))
bpf.perf_buffer_poll()
exit(99)
"""
    found_code, found = run(tmp_path, end=end)

    assert (code, 5) == (found_code, len(found))


def test_broken_tool(bcc, tmp_path, capsys):
    """A tool's own error is its own; what it had submitted is exported all the same."""
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, end="1 / 0")

    assert 4 == len(spans(tmp_path / "spans.jsonl"))
    assert "4 spans exported" in capsys.readouterr().err


def test_no_tool(bcc, capsys):
    """A tool that is not there is one line."""
    assert 1 == command.main(["nosnoop-at-all"])
    assert "ebpftrace: nosnoop-at-all: no such tool: give its path" in capsys.readouterr().err


def test_wrong_file(bcc, tmp_path, capsys):
    """A wrong file is told before the tool runs."""
    assert (1, []) == run(tmp_path, "--config", str(tmp_path / "none.yaml"))
    assert "none.yaml: cannot be read" in capsys.readouterr().err


def test_buffer_nobody_knows(bcc, monkeypatch, caplog):
    """A buffer of which BCC knows nothing makes no spans, and one log line; the tool is not disturbed."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    seen = []
    taps = Taps(bcc, "tool", None, stamp="start", service_name="", output="")
    with caplog.at_level(logging.WARNING):
        bpf = Bpf(events=("perf", None))
        bpf["events"].open_perf_buffer(lambda *_: seen.append(1), page_cnt=2)
        bpf.submit("events", Event(1, 2, 3))
    taps.close()

    assert ([1], 2) == (seen, bpf["events"].opened["pages"])
    [record] = caplog.records
    assert record.getMessage().startswith("the buffer 'events' makes no spans: BCC cannot say what the records of")


def test_lost(bcc, monkeypatch, capsys):
    """What a perf buffer loses is counted, and told as BCC tells it, or to whom the tool wanted it told."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    told = []
    taps = Taps(bcc, "tool", None, stamp="start", service_name="", output="")
    quiet, loud = Bpf(), Bpf()
    quiet["events"].open_perf_buffer(print, 8, told.append)
    loud["events"].open_perf_buffer(print)
    quiet["events"].opened["lost"](3)
    loud["events"].opened["lost"](4)
    taps.close()

    assert [3] == told
    assert "Possibly lost 4 samples\n" == capsys.readouterr().err
    assert "0 records, 0 spans, 7 records lost" in taps.summary()


def test_hooks_go(bcc, monkeypatch):
    """After close() BCC is as it was."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    before = PerfEventArray.open_perf_buffer, RingBuf.open_ring_buffer
    taps = Taps(bcc, "tool", None, stamp="start", service_name="", output="")

    assert before != (PerfEventArray.open_perf_buffer, RingBuf.open_ring_buffer)
    taps.close()
    taps.close()
    assert before == (PerfEventArray.open_perf_buffer, RingBuf.open_ring_buffer)
