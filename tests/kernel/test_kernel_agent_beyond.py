# SPDX-License-Identifier: Apache-2.0
"""What the format has beyond ebpf_exporter's, through the agent: types from BTF, roles, look-ups, counters."""

from __future__ import annotations

import contextlib
import datetime as dt
import grp
import os
import pwd
import re
import time
from pathlib import Path

import machine
import pytest
from agents import build, traced

DATA = Path(__file__).parent.parent / "data/programs"
FIRST = 0x42000000
TYPED, ROLES, LOOKED_UP, WHOLE, CUT, UNKNOWN, NO_TRACE = range(7)
ENCODERS = ("native", "sdk")
ROOT_USER, ROOT_GROUP = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The program, compiled once, with its description beside it."""
    return build("beyond", tmp_path_factory.mktemp("beyond"))


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


@pytest.mark.parametrize("encoder", ENCODERS)
def test_types(tmp_path, built, encoder):
    """Fields become what the C struct says they are: signed, floating, true or false, names of enums, text, bytes."""
    spans = collect(tmp_path, built, encoder, TYPED, 0, 7)
    when = [span["attributes"].pop("when", None) for span in spans]
    common = {
        "ebpftrace.program": "beyond",
        "ebpftrace.hook": "tp_btf/sys_enter",
        "ratio": 1.5,
        "share": -0.25,
        "small": -1,
        "raw": "0000fe",
        "text": "a\ufffd",
        "at.x": -3,
        "test.at": "fdff0400",
        "test.took": 0.0025,
    }

    assert [
        common | {"balance": 0, "test.mode": "unknown:3", "good": False},
        common | {"balance": -7, "count": 7, "test.mode": "MODE_BUSY", "good": True},
    ] == [span["attributes"] for span in spans]
    assert [bool, bool] == [type(span["attributes"]["good"]) for span in spans]
    assert [("typed", "beyond", "aa00000000000001", 500)] * 2 == [
        (span["name"], span["service"], span["parent"], span["end"] - span["start"]) for span in spans
    ]
    assert when[0] is None
    seconds = dt.datetime.fromisoformat(when[1]).timestamp()
    assert abs(seconds - spans[1]["start"] / 1e9) < 0.001


@pytest.mark.parametrize("encoder", ENCODERS)
def test_roles(tmp_path, built, encoder):
    """Name, service, kind, status, link and event of a span come from its record."""
    spans = collect(tmp_path, built, encoder, ROLES, 0, 2, 3, 4, 5)
    spans.sort(key=lambda span: span["trace"])  # services come in groups

    assert [
        ("titled", "even", 1, (0, "")),
        ("titled", "even", 2, (2, "")),
        ("titled", "odd", 3, (0, "")),
        ("titled", "even", 4, (2, "ECONNREFUSED")),
        ("titled", "odd", 5, (2, "")),
    ] == [(span["name"], span["service"], span["kind"], span["status"]) for span in spans]
    assert [[("half way", span["start"] + 500)] for span in spans] == [span["events"] for span in spans]
    link = ("0" * 30 + "07", "0" * 14 + "08")
    assert [[], [], [link], [], [link]] == [span["links"] for span in spans]
    assert [""] * 5 == [span["parent"] for span in spans]
    assert [{"ebpftrace.program": "beyond"}] * 5 == [span["attributes"] for span in spans]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_look_ups(tmp_path, built, encoder):
    """Addresses, users, groups, commands and errors have names; a stack has offsets, sizes and no hidden address."""
    [span] = collect(tmp_path, built, encoder, LOOKED_UP, 32 + 1, 32)
    attributes = span["attributes"]
    stack = attributes.pop("code.stacktrace").split("\n")

    assert {
        "ebpftrace.program": "beyond",
        "network.peer.address": "10.0.0.33:443",
        "user.name": ROOT_USER,
        "gid": ROOT_GROUP,
        "process.command": Path("/proc/self/comm").read_text().strip(),
        "error": "EDOM",
        "tag": "keep",
    } == attributes
    assert ("looked up", 3) == (span["name"], span["kind"])
    shape = re.compile(r"[\w.]+\+0x[0-9a-f]+(/0x[0-9a-f]+)?( \[\w+\])?")  # the size of the last symbol is unknown
    assert [] == [frame for frame in stack if not shape.fullmatch(frame)]
    assert stack[0].startswith("bpf_prog_")
    assert any(frame.startswith(("do_syscall_64+0x", "el0_svc+0x", "invoke_syscall+0x")) for frame in stack)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_struct_without_labels(tmp_path, built, encoder):
    """A struct alone is enough: all of its fields but head and padding, with their types."""
    [span] = collect(tmp_path, built, encoder, WHOLE, 7)

    assert {
        "ebpftrace.program": "beyond",
        "number": 7,
        "mode": "MODE_LOST",
        "at.x": 1,
        "at.y": 0,
        "good": True,
    } == span["attributes"]


def test_encoders_agree(tmp_path, built):
    """Both encoders make the same spans but for ids and what the clock says."""
    found = {}
    for encoder in ENCODERS:
        with traced(tmp_path, built, encoder) as (_, spans):
            for kind in (TYPED, ROLES, LOOKED_UP, WHOLE):
                call(kind, *range(6))
        for span in spans:
            span["took"] = span.pop("end") - span["start"]
            span["events"] = [(name, at - span["start"]) for name, at in span["events"]]
            del span["id"], span["start"]
            span["attributes"].pop("when", None)
        found[encoder] = sorted(spans, key=lambda span: (span["name"], span["trace"]))

    assert len(found["native"]) == 6 * 3 + 3
    assert found["sdk"] == found["native"]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_counted_and_not_logged(tmp_path, built, encoder):
    """Each record that makes no span is counted with its reason; the log has one line, for the first that failed."""
    prefix = 'ebpftrace_undecoded_records_total{program="beyond",reason="'
    with traced(tmp_path, built, encoder) as (daemon, spans):
        machine.until(lambda: "the agent runs" in daemon.log_text())
        before = len(daemon.log())
        for _ in range(100):
            call(CUT, 1)
            call(UNKNOWN, 1, 2)
            call(NO_TRACE, 1, 2, 3)
            call(LOOKED_UP, 0, 2, 4, 6)  # the tag is not what the expression wants
            call(ROLES, 77, 78, 79, 80, 81)  # kinds of span that there are not
        call(WHOLE, 1)
        machine.until(lambda: daemon.metrics()['ebpftrace_records_total{program="beyond"}'] == 1501)
        metrics = daemon.metrics()
        after = daemon.log()[before:]

    assert {"short": 100, "unknown_type": 200, "no_trace_id": 300, "skipped": 400, "failed": 500} == {
        head.removeprefix(prefix).removesuffix('"}'): value
        for head, value in metrics.items()
        if head.startswith(prefix)
    }
    assert metrics['ebpftrace_spans_total{program="beyond"}'] == 1
    assert ["whole"] == [span["name"] for span in spans]
    [line] = after
    assert "a record of the program 'beyond' makes no span; further ones are counted" in line["message"]
    assert "label 'kind': 77 is no kind of span" in line["message"]
    assert daemon.totals()["undecoded"] == 1500


def test_start_is_the_event_s_time(tmp_path, built):
    """Spans start when the kernel saw it, to the millisecond, not when the record was read."""
    before = time.time_ns()
    with traced(tmp_path, built, "native") as (_, spans):
        called = time.time_ns()
        call(WHOLE, 1)
        returned = time.time_ns()
        time.sleep(0.3)

    assert before < called - 1_000_000 <= spans[0]["start"] <= returned + 1_000_000
