# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import logging
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.agent import logs
from ebpftrace.agent.logs import JsonFormatter, RepeatFilter, TextFormatter, fields


@pytest.fixture
def configured():
    """What `configure` changes is put back."""
    root, ours = logging.getLogger(), logging.getLogger("ebpftrace")
    before = (list(root.handlers), root.level, ours.level)
    root.handlers.clear()
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:], level, own = before
    root.setLevel(level)
    ours.setLevel(own)


def record(message="hello", *args, level=logging.INFO, **values):
    made = logging.LogRecord("ebpftrace.agent", level, "x.py", 1, message, args, None)
    made.created = 1_700_000_000.123
    made.__dict__.update(fields(**values) if values else {})
    return made


def test_text():
    """A line has time, level, logger, message and the event's values, quoted where they need it."""
    line = TextFormatter().format(record("loaded %s", "sched", level=logging.WARNING, hooks=3, why="no such hook"))

    assert '2023-11-14T22:13:20.123Z WARNING ebpftrace.agent: loaded sched hooks=3 why="no such hook"' == line


def test_json():
    """In JSON the values keep their types, and what JSON has no type for is text."""
    line = JsonFormatter().format(record("loaded %s", "sched", hooks=3, path=io.BytesIO))

    assert {
        "ts": "2023-11-14T22:13:20.123Z",
        "level": "info",
        "logger": "ebpftrace.agent",
        "message": "loaded sched",
        "fields": {"hooks": 3, "path": str(io.BytesIO)},
    } == json.loads(line)


@given(st.text(), st.text())
def test_no_forged_lines(message, value):
    """Whatever a message or value holds, control characters are escaped and further lines indented."""
    text = TextFormatter().format(record("%s", message, key=value))
    made = JsonFormatter().format(record("%s", message, key=value))

    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", text)
    assert all(line.startswith("  ") for line in text.split("\n")[1:])
    assert [made] == made.splitlines()
    assert {"key": value} == json.loads(made)["fields"]


def test_exception():
    """An exception follows indented as text, and is one value in JSON."""
    try:
        int("broken")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    made = record("failed")
    made.exc_info = info

    assert "\n  ValueError: invalid literal" in TextFormatter().format(made)
    assert json.loads(JsonFormatter().format(made))["exception"].endswith("'broken'")


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_journal_priority(level, priority):
    """For the journal each line has its priority and neither time nor level, which the journal has itself."""
    line = TextFormatter(journal=True).format(record("one\ntwo", level=level))

    assert f"<{priority}>ebpftrace.agent: one\n<{priority}>  two" == line


def test_is_journal(tmp_path):
    """Stderr is the journal's when JOURNAL_STREAM names its device and inode, and not for any other value."""
    with (tmp_path / "err").open("w") as stream:
        status = os.fstat(stream.fileno())
        there = f"{status.st_dev}:{status.st_ino}"

        assert logs.is_journal(stream, {"JOURNAL_STREAM": there})
        assert not logs.is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
        assert not logs.is_journal(stream, {"JOURNAL_STREAM": "garbage"})
        assert not logs.is_journal(stream, {})
    assert not logs.is_journal(io.StringIO(), {"JOURNAL_STREAM": there})


def test_configure(configured):
    """Ours are logged from INFO on, others' from WARNING on, to the one stream and once; verbose, everything."""
    stream = io.StringIO()
    logs.configure("json", stream=stream, environ={})
    logs.configure("json", stream=stream, environ={})
    logging.getLogger("ebpftrace.agent").info("ours", extra=fields(n=1))
    logging.getLogger("ebpftrace.agent").debug("not asked for")
    logging.getLogger("urllib3").info("not wanted")
    logging.getLogger("urllib3").warning("wanted")

    all_of_it = io.StringIO()
    logs.configure("json", verbose=True, stream=all_of_it, environ={})
    logging.getLogger("ebpftrace.agent").debug("ours")
    logging.getLogger("urllib3").debug("theirs")

    assert ["ours", "wanted"] == [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert ["ours", "theirs"] == [json.loads(line)["message"] for line in all_of_it.getvalue().splitlines()]


def test_repeats(monkeypatch):
    """One event is written some times a minute; the next line after that says how many were held back."""
    now = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    held = RepeatFilter(burst=2, interval_s=60)
    passed = [held.filter(record("bad record %d", index)) for index in range(5)]
    other = held.filter(record("another event"))
    now[0] = 61.0
    late = record("bad record %d", 6)

    assert [True, True, False, False, False] == passed
    assert other
    assert held.filter(late)
    assert TextFormatter().format(late).endswith("bad record 6 suppressed=3")


def test_repeats_bounded():
    """Ever new messages do not make the filter grow without end."""
    held = RepeatFilter()
    for index in range(3000):
        held.filter(record(f"message {index}"))

    assert len(held._seen) <= 1024
