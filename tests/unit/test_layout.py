# SPDX-License-Identifier: Apache-2.0
"""User space and the BPF programs agree on every byte that both touch."""

from __future__ import annotations

import pytest

from ebpftrace.context import _publisher
from ebpftrace.context._publisher import LINE_BYTES, SLOT_BYTES
from ebpftrace.kernel._native import ffi, lib
from ebpftrace.kernel.object import BpfObject
from ebpftrace.programs import CORE, ShippedProgram, find, names
from ebpftrace.programs.core import DROP_REASONS

# OTEP 4947, thread context record: readers of others know these offsets
THREAD_CONTEXT = {"trace_id": 0, "span_id": 16, "valid": 24, "trace_flags": 25, "attrs_size": 26}
# The head of every record, which ebpftrace.spans.plan reads
SPAN_HEAD = {
    "hdr.ts_ns": (0, 8),
    "hdr.type": (8, 4),
    "hdr.len": (12, 4),
    "trace_id": (16, 16),
    "parent_span_id": (32, 8),
    "span_id": (40, 8),
    "duration_ns": (48, 8),
}
RECORDS = {
    "bio": ["ebt_bio_request"],
    "cfs-throttling": ["ebt_cfs_task", "ebt_cfs_period"],
    "exec": ["ebt_exec_process"],
    "sched": ["ebt_sched_switch", "ebt_sched_wakeup", "ebt_sched_off_cpu", "ebt_sched_migrate"],
    "sock": [
        "ebt_sock_connect",
        "ebt_sock_state",
        "ebt_sock_send",
        "ebt_sock_queue",
        "ebt_sock_receive",
        "ebt_sock_rtt",
        "ebt_sock_retransmit",
        "ebt_sock_zero_window",
        "ebt_sock_reset",
        "ebt_sock_drop",
        "ebt_sock_error",
        "ebt_sock_release",
        "ebt_sock_destroy",
    ],
}


@pytest.fixture(scope="module", params=[CORE, *names()])
def btf(request):
    """Types of each shipped object; reading them takes no privilege."""
    program = ShippedProgram(CORE) if request.param == CORE else find(request.param)
    return BpfObject(request.param, program.object_bytes()).btf


def placed(btf, name):
    """Offsets and sizes of a struct's fields, by the object's BTF."""
    return {field.name: (field.offset, field.size) for field in btf.fields(name)}


@pytest.mark.parametrize("name", ["ebt_slot", "ebt_line"])
def test_shared_structs(btf, name):
    """The C compiler that built the extensions and the one that built the programs laid the structs out alike."""
    theirs = placed(btf, name)
    ours = dict(ffi.typeof(f"struct {name}").fields)

    assert ffi.sizeof(f"struct {name}") == btf.struct_size(name)
    for field, known in ours.items():
        assert (known.offset, ffi.sizeof(known.type)) == theirs[field], field


def test_thread_context(btf):
    """The first 28 bytes of a slot are a thread context record of OpenTelemetry's."""
    offsets = {field.name: field.offset for field in btf.fields("ebt_slot")}

    assert THREAD_CONTEXT == {name: offsets[name] for name in THREAD_CONTEXT}
    assert 28 == offsets["mask"]


def test_cache_lines(btf):
    """A slot is one cache line; what a line shows to its thread is two."""
    line = placed(btf, "ebt_line")

    assert (64, 256) == (btf.struct_size("ebt_slot"), btf.struct_size("ebt_line")) == (SLOT_BYTES, LINE_BYTES)
    assert sum(line["times"]) <= 128
    assert sum(line["lost"]) <= 128


def test_causes(btf):
    """There are as many causes in the kernel's account as there are attributes."""
    assert 8 * len(_publisher.TIME_KEYS) == placed(btf, "ebt_line")["times"][1]


def test_cause_names():
    """The names of off-CPU spans are those of the attributes, in the same order."""
    [span] = [span for span in find("sched").config().tracing.spans if span.struct == "ebt_sched_off_cpu"]
    [name] = [label for label in span.labels if label.role == "span_name"]
    keys = {number: key.rpartition(".")[2] for number, key in enumerate(_publisher.TIME_KEYS)}

    assert keys == {0: "on_cpu", **name.decoders[0].static_map}


def test_drop_reasons():
    """Every reason to lose a record has a name."""
    assert lib.EBT_DROPS == len(DROP_REASONS)


def test_table_size():
    """The publisher and the loader make tables of the same size."""
    assert lib.EBT_TABLE_SLOTS == _publisher.TABLE_SLOTS


@pytest.mark.parametrize(("program", "record"), [(name, record) for name in RECORDS for record in RECORDS[name]])
def test_record_head(program, record):
    """Every record begins with the same head, and has no field that its alignment would not have."""
    btf = BpfObject(program, find(program).object_bytes()).btf
    fields = placed(btf, record)

    assert SPAN_HEAD == {
        name.removeprefix("span."): place for name, place in fields.items() if name.startswith("span.")
    }
    ends = [0, *(offset + size for offset, size in fields.values())]
    assert ends == [*(offset for offset, _ in fields.values()), btf.struct_size(record)]  # no hidden padding


def test_every_program_is_here():
    """No shipped program's records go unchecked."""
    shipped = {name: sorted({span.struct for span in find(name).config().tracing.spans}) for name in names()}

    assert {name: sorted(records) for name, records in RECORDS.items()} == shipped
