# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from ebpftrace.viewer import Span, build_traces, load, verdict

MS = 1_000_000
REPORT = Path(__file__).parent.parent / "data" / "viewer_report.jsonl"


def span(span_id, name, parent="", start=0, end=100, **times):
    attributes = {f"ebpftrace.time.{cause}": ms * MS for cause, ms in times.items()}
    return Span("t", span_id, parent, name, "app", start * MS + 1, end * MS + 1, attributes)


def kernel(span_id, name, parent, start, end, **attributes):
    made = span(span_id, name, parent, start, end)
    made.attributes = {"ebpftrace.program": "sched", **{f"ebpftrace.sched.{k}": v for k, v in attributes.items()}}
    return made


def words(*spans):
    (trace,) = build_traces(spans)
    return verdict(trace)


def test_throttled_request_names_quota_and_numbers():
    """The largest cause comes first with its share and time, the others in order, then what to do."""
    (trace, *_) = build_traces(load(str(REPORT)).spans)
    said = verdict(trace)

    assert said.startswith(
        "62 % of this request (310 ms of 500 ms) it was throttled by its CPU quota, 20 % it ran on a CPU"
    )
    assert "9 % it waited for the disk (in pread64)" in said
    assert "the other 3 % went to smaller things" in said
    assert "cpu.max" in said
    assert "3 kernel records of it were lost" in said


def test_lock_names_who_released_it():
    """System call and waker come from the kernel spans below the request."""
    said = words(
        span("1", "r", lock=80, on_cpu=20),
        kernel(
            "2", "lock", "1", 10, 90, **{"waker.pid": 1234, "waker.comm": "python", "syscall": "futex"}
        ),
    )  # fmt: skip

    assert "waited for a lock (in futex; released by thread 1234, python)" in said
    assert "The lock time was one wait." in said
    assert "critical section" in said


def test_waits_that_are_not_all_of_it():
    """Where only a part of a cause has kernel spans, their number is not told as that of all."""
    said = words(span("1", "r", lock=80, on_cpu=20), kernel("2", "lock", "1", 10, 40))

    assert "Of the lock time, 30 ms has kernel spans: one wait." in said
    assert "The lock time was" not in said


def test_trace_of_the_agent():
    """A trace whose root is a kernel span has no breakdown; that is no sign of something being wrong."""
    said = words(kernel("1", "block_rq", "", 0, 5))

    assert "“block_rq” took 5 ms. Kernel spans have no kernel time breakdown." == said


def test_call_that_is_not_most_of_a_cause_is_not_named():
    """Nothing is said of system calls when none accounts for half of the time."""
    waits = [kernel(str(2 + i), "disk", "1", i * 30, i * 30 + 30, syscall=f"call{i}") for i in range(3)]

    assert "call" not in words(span("1", "r", disk=90, on_cpu=10), *waits)


def test_child_process_is_named():
    """A wait in wait4 is explained by the program that was executed meanwhile."""
    program = kernel("3", "exec date", "1", 5, 95)
    program.attributes["ebpftrace.program"] = "exec"
    said = words(span("1", "r", other=100), kernel("2", "other", "1", 0, 100, syscall="wait4"), program)

    assert "for its child process “exec date”" in said


def test_root_without_breakdown_is_explained_by_its_longest_span_that_has_one():
    """A root of another service does not hide what is known below it."""
    said = words(
        span("1", "gateway"), span("2", "short", "1", 0, 10, on_cpu=10), span("3", "api", "1", 10, 90, disk=80)
    )

    assert said.startswith("“gateway” has no kernel time breakdown of its own")
    assert "“api”, 80 % of it" in said
    assert "100 % of the span “api” (80 ms of 80 ms) it waited for the disk" in said


def test_given_span_is_explained_instead_of_the_root():
    """The caller may ask about any span."""
    (trace,) = build_traces([span("1", "r", disk=100), span("2", "child", "1", 0, 50, sleep=50)])

    assert "it slept" in verdict(trace, trace.root.children[0])


def test_no_breakdown_says_so_and_why_that_may_be():
    """Without data nothing is claimed; with kernel spans the reason is another."""
    assert "neither a kernel time breakdown nor kernel spans" in words(span("1", "r"))
    assert "1 kernel span but no kernel time breakdown" in words(span("1", "r"), kernel("2", "disk", "1", 0, 5))
