# SPDX-License-Identifier: Apache-2.0
"""The program `cfs-throttling`: time without CPU quota, as the kernel's own statistics have it."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import machine
import pytest
import workloads
from harness import App, below, kernel, named, run

TRIES = (
    3 if machine.PATIENCE == 1 else 6
)  # another process of the machine may get in between, and a hypervisor between two timers
CLOSE = 0.05
PROGRAM = "cfs-throttling"
SPIN = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"


def statistics(group):
    """What the kernel counts: throttled periods of the group, and the time of its queues in ns."""
    words = {key: int(value) for key, value in map(str.split, (group / "cpu.stat").read_text().splitlines())}
    time_ns = words["throttled_time"] if "throttled_time" in words else words["throttled_usec"] * 1000
    return {"periods": words["nr_throttled"], "ns": time_ns}


def since(before, group):
    """What was added to the statistics."""
    return {key: value - before[key] for key, value in statistics(group).items()}


@contextmanager
def limited(percent, inner=False):
    """This process in a group with a quota, or in a group without one below such a group."""
    from ebpftrace.demos.cgroup import CpuQuota

    with CpuQuota(percent) as quota:
        group = quota.path
        if inner:
            group /= "inner"
            group.mkdir()
        try:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            yield quota.path
        finally:
            for pid in (group / "cgroup.procs").read_text().split():
                (quota._home / "cgroup.procs").write_text(pid)
            if inner:
                group.rmdir()


def busy_in_quota(inner):
    """A traced and an untraced second of work with a fifth of a CPU."""
    app = App(programs=(PROGRAM, "sched"))
    workloads.pin_to_one_cpu()
    with limited(20, inner) as group:
        workloads.busy(0.3)
        before = statistics(group)
        with app.traced("traced", PROGRAM):
            workloads.busy(1)
        counted = since(before, group)
        with app.span("untraced"):
            workloads.busy(0.5)
        cgroup = {"path": f"/{group.name}", "id": group.stat().st_ino}
    dropped = app.session.stats()["programs"][PROGRAM]["dropped"]
    return {"spans": app.spans(), "counted": counted, "cgroup": cgroup, "dropped": dropped}


def throttled_ns(spans):
    """The sum of what the spans say was without quota."""
    return sum(span["attributes"]["ebpftrace.cfs.throttled_ns"] for span in spans)


@pytest.mark.parametrize("inner", [False, True])
def test_thread(inner):
    """A traced thread has a span for each throttled period, as cpu.stat counts them, also of a group above its own."""
    for _ in range(TRIES):
        found = run(busy_in_quota, inner).value
        counted, spans = found["counted"], below(found["spans"], named(found["spans"], "traced"))
        if len(spans) == counted["periods"] and throttled_ns(spans) == pytest.approx(counted["ns"], rel=CLOSE):
            break

    print(counted, len(spans), throttled_ns(spans))
    assert counted["periods"] > 5
    assert counted["periods"] == len(spans)
    assert throttled_ns(spans) == pytest.approx(counted["ns"], rel=CLOSE)
    assert {"cfs_throttle"} == {span["name"] for span in spans}
    assert {found["cgroup"]["id"]} == {span["attributes"]["ebpftrace.cfs.cgroup_id"] for span in spans}
    assert all(span["attributes"]["ebpftrace.cfs.cgroup"].endswith(found["cgroup"]["path"]) for span in spans)
    for span in spans:
        parts = span["attributes"]["ebpftrace.cfs.throttled_ns"], span["attributes"]["ebpftrace.cfs.run_queue_ns"]
        assert span["wall"] == sum(parts)
        assert min(parts) >= 0
    assert not any(found["dropped"].values())


def test_untraced():
    """A context that did not enable the program has no spans of it, however much it was throttled."""
    found = run(busy_in_quota, False).value["spans"]
    untraced = named(found, "untraced")

    assert [] == below(found, untraced)
    assert untraced["times"]["throttled"] > 0.4 * untraced["wall"]


def crowd_in_quota():
    """Three traced threads with a fifth of a CPU between them."""
    app = App(programs=(PROGRAM,))
    workloads.pin_to_one_cpu()
    with limited(20) as group:
        before = statistics(group)

        def work(name):
            with app.traced(name, PROGRAM):
                workloads.busy(1)

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counted = since(before, group)
    return {"spans": app.spans(), "counted": counted}


def test_threads():
    """Threads of one group each have the time they were kept from running, and no two of a thread's spans overlap."""
    found = run(crowd_in_quota).value

    for name in "abc":
        parent = named(found["spans"], name)
        spans = sorted(below(found["spans"], parent), key=lambda span: span["start"])
        assert throttled_ns(spans) > 0.5 * parent["wall"]
        assert throttled_ns(spans) <= 1.05 * found["counted"]["ns"]
        assert all(one["end"] <= other["start"] for one, other in itertools.pairwise(spans))
        assert 1 == len({span["attributes"]["thread.id"] for span in spans})


@contextmanager
def everything():
    """The program as the agent loads it; yields a function that returns the periods so far, of a group."""
    from ebpftrace.kernel.btf import Btf
    from ebpftrace.kernel.object import BpfObject
    from ebpftrace.kernel.ringbuf import RingReader
    from ebpftrace.programs import find
    from ebpftrace.programs.choose import choose_functions, kernel_knobs
    from ebpftrace.programs.knobs import set_numbers

    with BpfObject(PROGRAM, find(PROGRAM).object_bytes()) as obj:
        fields = {field.name: field for field in obj.btf.fields("ebt_cfs_period")}
        numbers = [name for name, field in fields.items() if not field.count]
        choose_functions(obj, Btf.kernel())
        set_numbers(obj, {**kernel_knobs(Btf.kernel()), "trace_all": True}, known_only=True)
        obj.load()
        obj.attach()

        def number(data, offset, name):
            field = fields[name]
            return int.from_bytes(data[offset + field.offset : offset + field.offset + field.size], sys.byteorder)

        def periods(cgroup):
            time.sleep(0.2)  # the last one ends with its group's next timer
            found = []
            with RingReader() as reader:
                reader.add(obj.map("events"), 0)
                batch = reader.wait(interval_ms=10, timeout_ms=200)
                for _, offset, _ in batch:
                    record = {name: number(batch.data, offset, name) for name in numbers}
                    place = offset + fields["cgroup_path"].offset
                    record["path"] = bytes(batch.data[place : place + 256]).partition(b"\0")[0].decode()
                    place = offset + fields["span.trace_id"].offset
                    record["trace_id"], record["parent"] = struct.unpack_from("16s8s", batch.data, place)
                    found.append(record)
            return [record for record in found if record["cgroup"] == cgroup]

        yield periods


@pytest.mark.parametrize(("percent", "processes"), [(20, 1), (50, 3)])
def test_group(percent, processes):
    """Every throttled period of a group is a trace of its own, on each CPU; in all they are what cpu.stat has."""
    from ebpftrace.demos.cgroup import CpuQuota

    for _ in range(TRIES):
        with everything() as periods, CpuQuota(percent) as quota:
            before = statistics(quota.path)
            busy = [subprocess.Popen([sys.executable, "-c", SPIN, "1.5"]) for _ in range(processes)]
            for process in busy:
                quota.add(process.pid)
            for process in busy:
                process.wait()
            counted = since(before, quota.path)
            records = periods(quota.path.stat().st_ino)
            path = quota.path.name
        total = sum(record["span.duration_ns"] for record in records)
        ends = {record["nr_throttled"] for record in records}
        if total == pytest.approx(counted["ns"], rel=CLOSE) and len(ends) == counted["periods"]:
            break

    print(counted, len(records), total)
    assert counted["periods"] > 5
    assert counted["periods"] == len(ends)
    assert total == pytest.approx(counted["ns"], rel=CLOSE)
    assert {(percent * 1_000_000, 100_000_000)} == {(record["quota_ns"], record["period_ns"]) for record in records}
    assert all(record["path"].endswith(f"/{path}") for record in records)
    assert len(records) == len({record["trace_id"] for record in records})
    assert {bytes(8)} == {record["parent"] for record in records}
    assert bytes(16) not in {record["trace_id"] for record in records}


def quiet():
    """Two threads, one of which waits, without any quota."""
    app = App(programs=(PROGRAM,))
    with app.traced("quiet", PROGRAM):
        workloads.busy(0.2)
        time.sleep(0.05)
    return app.spans()


def test_no_quota():
    """A thread that no quota stops has no spans, though it waits and is preempted."""
    assert [] == kernel(run(quiet).value)
