# SPDX-License-Identifier: Apache-2.0
"""The breakdown says where a span's wall time went, and it adds up."""

from __future__ import annotations

import json

import pytest
import workloads
from harness import App, named, own, run

TRIES = 3  # of a workload: another process of the machine may get in between
MAX_ERROR = 0.02


def measure(workload, *args):
    """Run one workload in one span, a short while after the library has started."""
    app = App()
    facts = getattr(workloads, workload)(app, *args) or {}
    return {"span": named(app.spans(), workload), "stats": app.session.stats()["breakdown"], **facts}


def share(span, cause):
    """The part that went to `cause` of the time that the thread was not just waiting for a CPU of a busy machine."""
    others = span["times"].get("run_queue", 0) if cause != "run_queue" else 0
    return span["times"].get(cause, 0) / (span["wall"] - others)


def error(span):
    """How far the parts are from adding up to the whole."""
    return abs(sum(span["times"].values()) / span["wall"] - 1)


@pytest.mark.parametrize(
    ("workload", "cause", "least"),
    [
        ("spin", "on_cpu", 0.9),
        ("sleep", "sleep", 0.9),
        ("fsync", "disk", 0.4),
        ("contended_lock", "lock", 0.9),
        ("pipe_read", "other", 0.9),
        ("socket_receive", "network", 0.9),
        ("socket_poll", "network", 0.9),
        ("neighbour", "run_queue", 0.3),
        ("page_in", "page_fault", 0.1),
    ],
)
def test_cause(workload, cause, least):
    """Each way to lose time is attributed to its cause, and the parts add up to the span's duration within 2 %."""
    for _ in range(TRIES):
        span = run(measure, workload).value["span"]
        if share(span, cause) >= least and error(span) <= MAX_ERROR:
            break

    print(json.dumps(span["times"]), span["wall"])
    assert share(span, cause) >= least
    assert error(span) <= MAX_ERROR


def throttled():
    """Half a CPU's work with a fifth of a CPU's quota, and the kernel's own count of the time without quota."""
    app = App()
    facts = workloads.quota(app, seconds=1.0, quota_us=20_000)
    return {"span": named(app.spans(), "quota"), **facts}


def test_throttled():
    """Time without CPU quota is `throttled`, as much of it as the cgroup's own statistics say."""
    for _ in range(TRIES):
        found = run(throttled).value
        span, expected = found["span"], found["throttled_ns"]
        if abs(span["times"].get("throttled", 0) - expected) <= 0.1 * expected and error(span) <= MAX_ERROR:
            break

    print(json.dumps(span["times"]), span["wall"], expected)
    assert expected > 0.3 * span["wall"]
    assert span["times"]["throttled"] == pytest.approx(expected, rel=0.1)
    assert error(span) <= MAX_ERROR


def unmeasured():
    """One span with the breakdown switched off."""
    app = App(breakdown=False)
    workloads.sleep(app)
    return own(app.spans())


def test_switched_off():
    """With breakdown=False a span gets no ebpftrace.time attributes."""
    [span] = run(unmeasured).value

    assert {} == span["times"]


def many():
    """Two hundred spans of the usual kind: a little work and a short wait."""
    import time

    app = App()
    for number in range(200):
        with app.span(str(number)):
            workloads.busy(0.0005)
            time.sleep(0.001)
    return own(app.spans())


def test_no_part_exceeds_the_whole():
    """The parts of short spans add up, too: within 2 % or the 50 microseconds that starting and ending a span take."""
    spans = run(many).value

    off = [abs(sum(span["times"].values()) - span["wall"]) - max(MAX_ERROR * span["wall"], 50_000) for span in spans]
    assert 200 == len(spans)
    assert sorted(off)[int(0.95 * len(off))] <= 0  # a clock reading may be interrupted between span and account


def handed_over():
    """A span that another thread ends."""
    import threading

    app = App()
    span = app.tracer.start_span("handed over")
    thread = threading.Thread(target=span.end)
    thread.start()
    thread.join()
    return {"spans": own(app.spans()), "stats": app.session.stats()["breakdown"]}


def test_span_ended_by_another_thread():
    """A span that does not end on the thread it began on gets no breakdown, and is counted."""
    found = run(handed_over).value

    assert [{}] == [span["times"] for span in found["spans"]]
    assert 1 == found["stats"]["another_thread"]
