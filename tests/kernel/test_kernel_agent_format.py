# SPDX-License-Identifier: Apache-2.0
"""A program in the format of ebpf_exporter, made without any header of ours, run by the agent as it is."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import Counter
from pathlib import Path

import machine
import pytest
from agents import Agent, agent, build, plain, refused, traced
from otlp_servers import HttpCollector, running

from ebpftrace.agent.cgroup_tree import find_root

DATA = Path(__file__).parent.parent / "data/programs"
FIRST = 0x41000000
STEP, STACK, FILTERED, LOOSE, BARE, CUT = range(6)
NO_TRACE, NO_SPAN = 255, 254
ENCODERS = ("native", "sdk")
HALF = "{:016x}"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The program, compiled once, with its description beside it."""
    return build("foreign", tmp_path_factory.mktemp("foreign"))


def call(kind, *numbers):
    """Have the program make a record for each number."""
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.getpgid(FIRST + 256 * kind + number)


def collect(tmp_path, built, encoder, kind, *numbers):
    """The spans that the numbers make."""
    with traced(tmp_path, built, encoder) as (_, spans):
        call(kind, *numbers)
    return spans


def step(n, **changed):
    """The attributes of a step."""
    verbs = ("get", "put", "on", "unknown:3")
    return {
        "ebpftrace.program": "foreign",
        "device": "unknown:4080:2047",
        "verb": verbs[n % 4],
        "number": n,
        "port": 8000 + n,
        "symbol": "schedule",
        "address": f"127.0.0.{n}",
        "text": "plain",
        "watched": "0",
        **({"error": "EPIPE"} if n % 2 else {}),
        **changed,
    }


@pytest.mark.parametrize("encoder", ENCODERS)
def test_labels(tmp_path, built, encoder):
    """Ids, times, service and every kind of label are what the bytes say; numbers keep their type."""
    before = time.time_ns()
    spans = collect(tmp_path, built, encoder, STEP, 0, 1, 2, 3)

    assert [step(number) for number in range(4)] == [span["attributes"] for span in spans]
    assert {("step", "foreign", 1, (0, "")) for _ in spans} == {
        (span["name"], span["service"], span["kind"], span["status"]) for span in spans
    }
    for number, span in enumerate(spans):
        assert HALF.format(0x1000) + HALF.format(number) == span["trace"]
        assert (HALF.format(0x2000 + number), HALF.format(0x3000 + number)) == (span["parent"], span["id"])
        assert number * 1000 == span["end"] - span["start"]
        assert before <= span["start"] <= time.time_ns()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_text_that_is_not_utf8(tmp_path, built, encoder):
    """Bytes that are no UTF-8 are replaced, what is behind the NUL is not text, and the batch is not lost by it."""
    spans = collect(tmp_path, built, encoder, STEP, 7, 8)

    assert ["plain", "caf\ufffd\ufffd"] == [span["attributes"]["text"] for span in spans]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_number_too_large(tmp_path, built, encoder):
    """A number that OTLP has no room for is text."""
    [span] = collect(tmp_path, built, encoder, STEP, 9)

    assert step(9, number=str((1 << 64) - 1)) == span["attributes"]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_zero_ids(tmp_path, built, encoder):
    """A zero span id becomes a random one, a zero parent a root; a zero trace id is no span, and counted."""
    with traced(tmp_path, built, encoder) as (daemon, spans):
        call(STEP, NO_SPAN, NO_SPAN, NO_TRACE)
        machine.until(lambda: daemon.metrics()['ebpftrace_records_total{program="foreign"}'] == 3)
        counted = daemon.metrics()['ebpftrace_undecoded_records_total{program="foreign",reason="no_trace_id"}']

    assert [("", HALF.format(0x1000) + HALF.format(NO_SPAN))] * 2 == [(span["parent"], span["trace"]) for span in spans]
    assert len({span["id"] for span in spans} - {"0" * 16}) == 2
    assert counted == 1


@pytest.mark.parametrize("encoder", ENCODERS)
def test_stack(tmp_path, built, encoder):
    """A stack is a function a line; without a name the span has its ring buffer's, without a service the agent's."""
    [span] = collect(tmp_path, built, encoder, STACK, 1)
    frames = span["attributes"]["kstack"].split("\n")

    assert ("stacks", "kernel") == (span["name"], span["service"])
    assert frames[0].startswith("bpf_prog_")  # the program itself, which is there for as long as it is loaded
    assert any(frame in ("do_syscall_64", "el0_svc", "invoke_syscall") for frame in frames)
    assert not any("0x" in frame or "+" in frame for frame in frames)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_regexp(tmp_path, built, encoder):
    """A label names its span; a record that no expression matches makes none, and is counted."""
    with traced(tmp_path, built, encoder) as (daemon, spans):
        call(FILTERED, 0, 1, 2, 3, 5)
        machine.until(lambda: daemon.metrics()['ebpftrace_records_total{program="foreign"}'] == 5)
        counted = daemon.metrics()['ebpftrace_undecoded_records_total{program="foreign",reason="skipped"}']

    assert [("worker", 0), ("worker", 2000)] == [(span["name"], span["end"] - span["start"]) for span in spans]
    assert counted == 3


@pytest.mark.parametrize("encoder", ENCODERS)
def test_no_trace_id_label(tmp_path, built, encoder):
    """Without a trace id among the labels each span is the root of a trace of its own."""
    spans = collect(tmp_path, built, encoder, LOOSE, 1, 2)

    assert [("loose", "", 1), ("loose", "", 2)] == [
        (span["name"], span["parent"], span["attributes"]["number"]) for span in spans
    ]
    assert len({span["trace"] for span in spans} - {"0" * 32}) == 2


@pytest.mark.parametrize("encoder", ENCODERS)
def test_base_and_short_records(tmp_path, built, encoder):
    """`base` stands for the five labels of the head; a record that ends before its labels do is counted as short."""
    with traced(tmp_path, built, encoder) as (daemon, spans):
        call(BARE, 1)
        call(CUT, *range(50))
        call(BARE, 2)
        machine.until(lambda: daemon.metrics()['ebpftrace_records_total{program="foreign"}'] == 52)
        counted = daemon.metrics()['ebpftrace_undecoded_records_total{program="foreign",reason="short"}']

    assert [(HALF.format(0x3001), 1), (HALF.format(0x3002), 2)] == [
        (span["id"], span["attributes"]["number"]) for span in spans
    ]
    assert counted == 50


def test_encoders_agree(tmp_path, built):
    """Both encoders make the same spans, of every kind of record, but for what is random and what the clock says."""
    found = {}
    for encoder in ENCODERS:
        with traced(tmp_path, built, encoder) as (_, spans):
            for kind in (STEP, STACK, FILTERED, BARE):
                call(kind, *range(20), NO_TRACE)
        for span in spans:
            span["took"] = span.pop("end") - span.pop("start")
        found[encoder] = sorted(spans, key=lambda span: (span["name"], span["id"]))

    assert len(found["native"]) == 20 + 20 + 10 + 21 - 1
    assert found["sdk"] == found["native"]


@pytest.fixture
def group():
    """A cgroup that the file asks for."""
    path = find_root() / f"ebpftrace-test-watched-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


def in_group(path, number):
    """One step, made by a process in a cgroup."""
    code = f"import os, contextlib\nopen({str(path / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
    code += f"with contextlib.suppress(OSError):\n    os.getpgid({FIRST + 256 * STEP + number})\n"
    subprocess.run(["python3", "-c", code], check=True)


def test_cgroup_map(tmp_path, built, group):
    """The map has the ids of the cgroups that the expressions match, of one that is made later too."""
    entries = 'ebpftrace_cgroup_map_entries{program="foreign"}'
    later = group.with_name(group.name + "0")
    with traced(tmp_path, built, "native") as (daemon, spans):
        assert daemon.metrics()[entries] == 1
        in_group(group, 1)
        later.mkdir()
        try:
            machine.until(lambda: daemon.metrics()[entries] == 2)
            in_group(later, 2)
        finally:
            later.rmdir()
        call(STEP, 3)

    assert ["yes", "yes", "0"] == [span["attributes"]["watched"] for span in spans]


def test_rest_goes_on(tmp_path, built):
    """What this kernel does not have is said once, and is an error in the trace of the start; --strict ends there."""
    with running(HttpCollector()) as collector:
        with agent(tmp_path, built, endpoint=collector.url) as daemon:
            said = [line["message"] for line in daemon.log() if line["level"] == "warning"]
            hooks = {head: value for head, value in daemon.metrics().items() if "program_hooks" in head}
        errors = [span["name"] for span in plain(collector) if span["status"][0] == 2]
    code, message = refused(built, "--strict")

    hook = "tp_btf/ebpftrace_no_such_tracepoint"
    reason = f"{hook}: this kernel has no tracepoint ebpftrace_no_such_tracepoint"
    assert 1 == sum(reason in line for line in said)
    assert 1 == sum("metrics: is ignored" in line for line in said)
    assert [f"attach {hook}"] == errors
    assert [1, 1] == [
        hooks[f'ebpftrace_program_hooks{{program="foreign",state="{state}"}}'] for state in ("attached", "failed")
    ]
    assert code == 1
    assert reason in message


def test_no_line_for_a_record(tmp_path, built):
    """Thousands of records that make no span bring no line into the log."""
    daemon = Agent(tmp_path, built)
    daemon.ready()
    try:
        machine.until(lambda: "the agent runs" in daemon.log_text())
        before = len(daemon.log())
        for _ in range(20):
            call(STEP, *[NO_TRACE] * 100)
            call(FILTERED, *[1] * 100)
            call(CUT, *[1] * 100)
        machine.until(lambda: daemon.metrics()['ebpftrace_records_total{program="foreign"}'] == 6000)
        counted = Counter(
            {
                head.partition("reason=")[2].strip('"}'): value
                for head, value in daemon.metrics().items()
                if head.startswith('ebpftrace_undecoded_records_total{program="foreign"')
            }
        )
        after = len(daemon.log())
    finally:
        daemon.end()

    assert before == after
    assert {"no_trace_id": 2000, "skipped": 2000, "short": 2000} == {
        key: value for key, value in counted.items() if value
    }
