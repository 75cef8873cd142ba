# SPDX-License-Identifier: Apache-2.0
"""Perf and ring buffers of a program that BCC would have loaded, read while the kernel fills them."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import machine
import pytest
from bcc_stand_in import Bpf, Call, Spans, call

import ebpftrace.bcc
from ebpftrace.errors import BpfError, ConfigError

YAML = """
tracing:
  spans:
    - name: asked
      ringbuf: {buffer}
      labels:
        - {{name: begun, size: 8, role: start, decoders: [{{name: uint}}]}}
        - {{name: process, size: 4, decoders: [{{name: uint}}]}}
        - {{name: number, size: 4, decoders: [{{name: int}}]}}
        - {{name: command, size: 16, decoders: [{{name: string}}]}}
"""


@pytest.fixture
def program(tmp_path):
    """A running program."""
    with Bpf(tmp_path) as bpf:
        yield bpf


@pytest.fixture
def spans():
    """Where spans go."""
    found = Spans()
    yield found
    found.provider.shutdown()


@pytest.mark.parametrize("buffer", ["ring", "perf"])
def test_labels(program, spans, buffer):
    """Every record becomes a span by the file's labels, at its own time, in the order of submission."""
    before = time.time_ns()
    with ebpftrace.bcc.spans(program, buffer, YAML.format(buffer=buffer), program="asks", to=spans.provider) as reader:
        call(100)
        assert reader.flush()
        found = spans.found

    assert [*range(100)] == [span.attributes["number"] for span in found]
    assert {"asked"} == {span.name for span in found}
    assert {os.getpid()} == {span.attributes["process"] for span in found}
    assert {("asks", Path("/proc/self/comm").read_text().strip())} == {
        (span.attributes["ebpftrace.program"], span.attributes["command"]) for span in found
    }
    assert all(before - 1_000_000 < span.start_time < time.time_ns() for span in found)


@pytest.mark.parametrize("record", [Call, None])
@pytest.mark.parametrize("buffer", ["ring", "perf"])
def test_structure_alone(program, spans, buffer, record):
    """A ctypes structure, or what BCC knows, is description enough: its fields are attributes."""
    with ebpftrace.bcc.spans(program, buffer, record, name="ask", to=spans.provider) as reader:
        call(3)
        assert reader.flush()

    assert [("ask", 0), ("ask", 1), ("ask", 2)] == [(span.name, span.attributes["number"]) for span in spans.found]
    assert {"ts", "tgid", "number", "comm", "ebpftrace.program"} == set(spans.found[0].attributes)


def test_both_buffers(program, spans):
    """One reader takes several buffers."""
    both = ("ring", "perf")
    with ebpftrace.bcc.spans(program, both, Call, to=spans.provider) as reader:
        call(5)
        assert reader.flush()

    assert {"ring": 5, "perf": 5} == {name: sum(span.name == name for span in spans.found) for name in both}


def test_polling(program, spans):
    """Without a thread, records are read when the caller asks, and a caller who waits is not kept for long."""
    with ebpftrace.bcc.spans(program, "perf", thread=False, to=spans.provider) as reader:
        call(4)
        assert () == spans.found
        assert 4 == reader.poll(1000)
        begun = time.monotonic()
        assert 0 == reader.poll(100)
        waited = time.monotonic() - begun

    assert 4 == len(spans.found)
    assert 0.05 < waited < 5


def test_poll_with_a_thread(program, spans):
    """Polling what a thread reads is refused."""
    with (
        ebpftrace.bcc.spans(program, "ring", to=spans.provider) as reader,
        pytest.raises(ConfigError, match="thread=False"),
    ):
        reader.poll()


def test_lost(program, spans):
    """What a perf buffer had no room for is counted: nothing goes missing without a number."""
    # bound to one CPU: each has a buffer of its own
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        reader = ebpftrace.bcc.spans(program, "perf", thread=False, pages=1, to=spans.provider)
        call(1000)
        reader.poll(0)
        call(1)  # the kernel tells of losses with the next record that has room
        reader.close()
    finally:
        os.sched_setaffinity(0, allowed)
    stats = reader.stats()

    submitted = int.from_bytes(program._object.map("calls").lookup(bytes(4)), "little")
    assert stats["lost"]["buffer"] > 900
    assert submitted == stats["records"] + stats["lost"]["buffer"]
    assert len(spans.found) == stats["records"] == stats["exported"]


def test_closed_while_read(program, spans, caplog):
    """When the program is closed under the reader, what it had submitted is read, and one log line says so."""
    with ebpftrace.bcc.spans(program, ("ring", "perf"), Call, to=spans.provider) as reader:
        call(50)
        program.cleanup()
        machine.until(lambda: reader.error)

    assert 100 == len(spans.found)
    assert "closed while 'ring', 'perf' was read" in reader.error
    assert [reader.error] == [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_closed_while_polled(program, spans):
    """Polling after the program was closed brings what is left, then says that nothing follows."""
    with ebpftrace.bcc.spans(program, "perf", thread=False, to=spans.provider) as reader:
        call(2)
        program.cleanup()
        assert 2 == reader.poll(100)
        with pytest.raises(ebpftrace.bcc.ClosedError, match="nothing follows"):
            reader.poll(100)


def test_closed_before(program):
    """A program that is closed already is refused."""
    program.cleanup()

    with pytest.raises(ebpftrace.bcc.ClosedError, match="is closed"):
        ebpftrace.bcc.spans(program, "ring")


def test_second_reader(program, spans):
    """A buffer has one reader; when that is closed, it may have another."""
    with (
        ebpftrace.bcc.spans(program, "perf", to=spans.provider),
        pytest.raises(ConfigError, match="another reader already"),
    ):
        ebpftrace.bcc.spans(program, "perf", to=spans.provider)
    with ebpftrace.bcc.spans(program, "perf", to=spans.provider) as reader:
        call(1)
        reader.flush()

    assert 1 == len(spans.found)


def test_refused_map(program, spans):
    """A map that the kernel will not have read as what BCC calls it is an error that names it, and leaves nothing."""
    program["perf"].map_fd = program["calls"].map_fd

    with pytest.raises(BpfError, match="cannot read the perf buffer 'perf'"):
        ebpftrace.bcc.spans(program, "perf", to=spans.provider)
    assert [] == [each.name for each in threading.enumerate() if each.name == "ebpftrace-reader"]


def test_fork(program, spans):
    """The child of a fork that closes its copy of the reader takes nothing from its parent."""
    with ebpftrace.bcc.spans(program, "perf", to=spans.provider) as reader:
        pid = os.fork()
        if not pid:
            reader.close()
            os._exit(0)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        call(3)
        assert reader.flush()

    assert 3 == len(spans.found)


def test_end_stamp(program, spans):
    """A record that was stamped when something ended makes a span that ends then."""
    text = YAML.format(buffer="ring").replace("{name: process, size: 4,", "{name: process, size: 4, role: duration,")
    with ebpftrace.bcc.spans(program, "ring", text, stamp="end", to=spans.provider) as reader:
        before = time.time_ns()
        call(1)
        assert reader.flush()
    [span] = spans.found

    assert os.getpid() == span.end_time - span.start_time
    assert before - 1_000_000 < span.end_time
