# SPDX-License-Identifier: Apache-2.0
"""A span's times are the SDK's; the breakdown is fitted to them where the account was read earlier or later."""

from __future__ import annotations

import subprocess
import time

import pytest
import workloads
from harness import App, below, kernel, named, run

MS = 1_000_000
TRIES = 3


def started_earlier(wait):
    """A span with a given start, as a web framework's instrumentation makes it; the thread did something since."""
    app = App()
    with app.tracer.start_as_current_span("first"):  # the thread has its slot
        time.sleep(0.01)
    start = time.time_ns()
    if wait:
        time.sleep(0.03)
    workloads.busy(0.002)  # shorter than a time slice: one switch back is all that is remembered
    app.tracer.start_span("span", start_time=start).end()
    return named(app.spans(), "span")


@pytest.mark.parametrize("wait", [False, True])
def test_work_before_the_processor(wait):
    """What the thread did between a span's given start and its making is in the breakdown."""
    for _ in range(TRIES):
        span = run(started_earlier, wait).value
        if span["times"]["on_cpu"] > MS and span["times"].get("sleep", 0) >= 30 * MS * wait:
            break

    assert abs(sum(span["times"].values()) - span["wall"]) < MS
    assert span["times"]["on_cpu"] > MS
    assert span["times"].get("sleep", 0) >= 30 * MS * wait


def ended_earlier():
    """A span that is ended with a time before the thread went to sleep."""
    app = App()
    span = app.tracer.start_span("span")
    workloads.busy(0.02)
    end = time.time_ns()
    time.sleep(0.05)
    span.end(end_time=end)
    return named(app.spans(), "span")


def test_wait_after_the_end():
    """What the thread did after a span's end is not in the breakdown."""
    for _ in range(TRIES):
        span = run(ended_earlier).value
        if abs(sum(span["times"].values()) - span["wall"]) < MS:
            break

    assert abs(sum(span["times"].values()) - span["wall"]) < MS
    assert span["times"].get("sleep", 0) < MS


def much_earlier():
    """A span whose start lies before all that is remembered of its thread, such as the time a message was sent."""
    app = App()
    start = time.time_ns()
    for _ in range(5):
        time.sleep(0.01)
    app.tracer.start_span("span", start_time=start).end()
    return named(app.spans(), "span")


def test_before_what_is_known():
    """Time before what is remembered of the thread counts as other, and the parts still add up."""
    span = run(much_earlier).value

    assert span["times"]["other"] > 20 * MS
    assert abs(sum(span["times"].values()) - span["wall"]) < MS


def without_sched(how):
    """Only the program exec is there: the other was not wanted, or did not load."""
    from ebpftrace.programs import ShippedProgram

    intact = ShippedProgram.object_bytes
    if how == "broken":
        ShippedProgram.object_bytes = lambda self: b"no ELF" * 100 if self.name == "sched" else intact(self)
    app = App(**({"programs": ["exec"]} if how == "not wanted" else {}))
    with app.traced("job"):
        subprocess.run(["true"], check=True)
        time.sleep(0.02)
    return {"active": app.session.active, "spans": app.spans()}


@pytest.mark.parametrize("how", ["not wanted", "broken"])
def test_nobody_counts(how):
    """Without the program that counts, spans get no breakdown; it would call all their time on_cpu."""
    found = run(without_sched, how).value

    assert found["active"]
    assert {} == named(found["spans"], "job")["times"]
    assert {"exec"} == {span["program"] for span in kernel(found["spans"])}


def concurrent_processors():
    """A provider that calls its processors in a pool's threads, before and after a start()."""
    from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    import ebpftrace

    app = App()
    app.provider = TracerProvider(active_span_processor=ConcurrentMultiSpanProcessor(2), shutdown_on_exit=False)
    app.provider.add_span_processor(SimpleSpanProcessor(app.exporter))
    app.tracer = app.provider.get_tracer("app")
    for name in ("bound later", "bound at start"):
        with app.traced(name, "sched"):
            workloads.busy(0.01)
            time.sleep(0.01)
        app.provider.force_flush()
        ebpftrace.stop()
        ebpftrace.start()
    return app.spans()


def test_concurrent_processors():
    """A provider whose processors run in other threads gets the kernel's spans, and no breakdown of those threads."""
    spans = run(concurrent_processors).value

    for name in ("bound later", "bound at start"):
        assert {} == named(spans, name)["times"]
        assert "sleep" in {span["name"] for span in below(spans, named(spans, name))}
