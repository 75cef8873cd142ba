# SPDX-License-Identifier: Apache-2.0
"""Records of a real kernel, kept in tests/data (see record.py there), and plans that cannot be made."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.config import DecoderConfig, LabelConfig
from ebpftrace.errors import ConfigError
from ebpftrace.kernel.object import BpfObject
from ebpftrace.programs import find
from ebpftrace.spans.clock import Clock
from ebpftrace.spans.plan import ProgramPlan, RecordPlan

DATA = Path(__file__).parents[1] / "data"
TRACE_ID, SPAN_ID = 0x0102030405060708090A0B0C0D0E0F10, 0x1112131415161718


def load(program):
    """The plan of a shipped program, its object's types, and its file."""
    shipped = find(program)
    obj = BpfObject(program, shipped.object_bytes())
    return ProgramPlan(program, shipped.config(), obj.btf), obj.btf, shipped.config()


def recorded(program):
    """What the recording says, its bytes, and a clock that stands as it stood then."""
    facts = json.loads((DATA / f"{program}.json").read_text())
    clock = Clock(wall=lambda: facts["offset_ns"], monotonic=lambda: 0)
    return facts, memoryview((DATA / f"{program}.bin").read_bytes()), clock


def decoded(program):
    """The spans of a recording, and what the recording says."""
    plan, _, _ = load(program)
    facts, data, clock = recorded(program)
    spans = plan.decode(data, facts["places"], clock)
    assert (len(facts["places"]), 0) == (plan.records, plan.undecoded)
    return spans, facts


def test_sched_identity():
    """Records of `sched` are spans below the published span, in its trace, with ids of their own."""
    spans, _ = decoded("sched")
    ids = {span.span_id for span in spans}

    assert {(TRACE_ID, SPAN_ID)} == {(span.trace_id, span.parent_span_id) for span in spans}
    assert len(spans) == len(ids)
    assert 0 not in ids
    assert {"sched_switch", "sched_wakeup", "sleep"} <= {span.name for span in spans}


@pytest.mark.parametrize("program", ["exec", "sched"])
def test_times(program):
    """Kernel time becomes the wall time at which it happened."""
    spans, facts = decoded(program)

    for span in spans:
        assert facts["began_ns"] - 1_000_000 <= span.start_ns <= span.end_ns <= facts["ended_ns"] + 1_000_000


def test_sched_attributes():
    """A wait knows thread, system call and duration; what the record does not know is no attribute."""
    spans, facts = decoded("sched")
    slept = next(span for span in spans if span.name == "sleep")

    assert 19_000_000 <= slept.end_ns - slept.start_ns < 200_000_000
    assert (facts["pid"], facts["tid"]) == (slept.attributes["process.pid"], slept.attributes["thread.id"])
    assert "clock_nanosleep" == slept.attributes["ebpftrace.sched.syscall"]
    assert ("sched", "tp_btf/sched_switch") == tuple(
        slept.attributes[f"ebpftrace.{key}"] for key in ("program", "hook")
    )
    assert "ebpftrace.sched.waker.tid" not in slept.attributes  # a timer's interrupt


def test_sched_switch():
    """A switch has no duration; its state is in words, its flag is a boolean."""
    spans, _ = decoded("sched")
    switches = [span for span in spans if span.name == "sched_switch"]

    for span in switches:
        assert span.start_ns == span.end_ns
        assert isinstance(span.attributes["ebpftrace.sched.preempt"], bool)
        assert span.attributes["ebpftrace.sched.state"] in ("running", "interruptible", "uninterruptible")


def test_exec():
    """Records of `exec` are named after the binary and have arguments, exit codes and errors."""
    spans, facts = decoded("exec")
    true = next(span for span in spans if span.name == "exec true")
    killed = next(span for span in spans if span.error and span.error.startswith("killed"))

    assert ("true", "an argument", "café") == true.attributes["process.command_args"]
    assert (0, None) == (true.attributes["process.exit.code"], true.error)
    assert facts["pid"] == true.attributes["process.parent_pid"]
    assert true.attributes["process.executable.path"].endswith("/true")
    assert "killed by SIGKILL" == killed.error
    assert "process.exit.code" not in killed.attributes


def test_exec_chain():
    """A binary that was replaced by another one has neither exit code nor error; the last one has."""
    spans, _ = decoded("exec")
    last = next(span for span in spans if span.error == "exit code 3")
    chain = [span for span in spans if span.attributes["process.pid"] == last.attributes["process.pid"]]

    assert ["exec sh", "exec env", "exec sh"] == [span.name for span in chain]
    assert [0, 1, 2] == [span.attributes["ebpftrace.exec.chain"] for span in chain]
    assert [None, None, 3] == [span.attributes.get("process.exit.code") for span in chain]
    assert [None, None, "exit code 3"] == [span.error for span in chain]


def test_undecodable():
    """A record of an unknown type, or one that is too short, is counted and disturbs no other."""
    plan, _, _ = load("sched")
    facts, data, clock = recorded("sched")
    (offset, size) = facts["places"][0]
    strange = bytearray(data[offset : offset + size])
    struct.pack_into("I", strange, 8, 99)
    batch = memoryview(bytes(strange) + bytes(data[offset : offset + size]))

    spans = plan.decode(batch, [(0, size), (size, size - 1), (size, 4), (size, 0), (size, size)], clock)
    assert 1 == len(spans)
    assert (5, 4) == (plan.records, plan.undecoded)


_plan, _btf, _ = load("exec")


@given(st.data())
def test_any_bytes(data):
    """Whatever a record's bytes are, decoding raises nothing: they come from the kernel, but through shared memory."""
    size = _btf.struct_size("ebt_exec_process")
    record = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
    struct.pack_into("I", record, 8, 1)
    clock = Clock(wall=lambda: 0, monotonic=lambda: 0)

    [span] = _plan.decode(memoryview(record), [(0, size)], clock)
    assert span.name.startswith("exec ")


def span_config(**changes):
    """The configuration of a wait, changed."""
    _, btf, config = load("sched")
    span = next(span for span in config.tracing.spans if span.struct == "ebt_sched_off_cpu")
    return msgspec.structs.replace(span, **changes), btf


def test_unknown_struct():
    """A struct that the object does not have is a ConfigError that says how to put it there."""
    config, btf = span_config(struct="ebt_nothing")

    with pytest.raises(ConfigError, match=r"sched.yaml: span 'off_cpu'.*no struct 'ebt_nothing'.*EBT_RECORD"):
        RecordPlan("sched", config, btf)


def test_unknown_field():
    """A label of a field that the struct does not have is a ConfigError that has those that it has."""
    config, btf = span_config(labels=[LabelConfig("colour", attribute="c")])

    with pytest.raises(ConfigError, match="no field 'colour'; it has pid, tid"):
        RecordPlan("sched", config, btf)


def test_unknown_decoder():
    """A label with a decoder that does not exist is a ConfigError."""
    config, btf = span_config(labels=[LabelConfig("pid", attribute="p", decoders=[DecoderConfig("nothing")])])

    with pytest.raises(ConfigError, match="no decoder 'nothing'"):
        RecordPlan("sched", config, btf)


def built(*labels):
    """The first wait of the recording, with these labels."""
    config, btf = span_config(labels=list(labels))
    plan = RecordPlan("sched", config, btf)
    facts, data, clock = recorded("sched")
    place = next(offset for offset, _ in facts["places"] if data[offset + 8] == config.type)
    return plan.build(data, place, clock.to_epoch), facts


def test_several_decoders():
    """Decoders are applied one after another."""
    chain = [DecoderConfig("bool"), DecoderConfig("static_map", {True: "yes"})]
    span, _ = built(LabelConfig("pid", attribute="process", decoders=chain))

    assert "yes" == span.attributes["process"]


def test_one_field_twice():
    """A field may be several attributes, in any order."""
    span, facts = built(
        LabelConfig("tid", attribute="b"), LabelConfig("pid", attribute="a"), LabelConfig("tid", attribute="c")
    )

    assert (facts["pid"], facts["tid"], facts["tid"]) == tuple(span.attributes[key] for key in "abc")


def test_name_without_a_role():
    """Without a label for the name, the span is called as the file says; without one for errors, it is none."""
    span, _ = built(LabelConfig("pid", attribute="a"))

    assert ("off_cpu", None) == (span.name, span.error)
