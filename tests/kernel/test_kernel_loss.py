# SPDX-License-Identifier: Apache-2.0
"""What is lost is counted, and the span that lost it says so."""

from __future__ import annotations

import os
import pkgutil
import resource
import threading
import time

import pytest
from harness import App, below, kernel, named, own, run


def _hold_first(exporter, seconds):
    """Have the exporter take its time over the first span, which keeps the reader from the ring."""
    export, held = exporter.export, []

    def slowly(spans):
        if not held:
            held.append(time.sleep(seconds))
        return export(spans)

    exporter.export = slowly


def storm(ring_kib, rounds, slow):
    """Two threads that wake each other all the time, one of them traced; waits make no spans, only switches do."""
    app = App(ring_kib=ring_kib, min_off_cpu_us=10_000_000)
    if slow:
        _hold_first(app.exporter, seconds=0.3)
    to, back = os.pipe(), os.pipe()

    def answer():
        for _ in range(rounds):
            os.read(to[0], 1)
            os.write(back[1], b"x")

    thread = threading.Thread(target=answer)
    thread.start()
    with app.traced("storm", "sched"):
        before = resource.getrusage(resource.RUSAGE_THREAD)
        for _ in range(rounds):
            os.write(to[1], b"x")
            os.read(back[0], 1)
        after = resource.getrusage(resource.RUSAGE_THREAD)
    thread.join()
    with app.span("calm"):
        pass
    switches = after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw
    return {"switches": switches, "spans": app.spans(), "stats": app.session.stats()["programs"]["sched"]}


def test_full_ring():
    """Records that a full ring refused are counted, nothing else is missing, and the span tells how many it lost."""
    found = run(storm, 4, 3000, True).value
    lost, records = found["stats"]["dropped"]["ring_full"], found["stats"]["records"]

    assert lost > 0
    assert lost == named(found["spans"], "storm")["attributes"]["ebpftrace.lost_records"]
    assert records == len({span["id"] for span in kernel(found["spans"])})  # and none came twice
    assert found["switches"] <= records + lost <= 2 * found["switches"] + 20  # a switch, and mostly a wake-up, each
    assert "ebpftrace.lost_records" not in named(found["spans"], "calm")["attributes"]


def test_ring_that_is_large_enough():
    """A ring of the usual size loses nothing of the same storm."""
    found = run(storm, 1024, 3000, False).value

    assert {"ring_full": 0, "map_full": 0, "limit": 0} == found["stats"]["dropped"]
    assert 0 == found["stats"]["undecoded"]
    assert found["stats"]["records"] == len(kernel(found["spans"]))
    assert "ebpftrace.lost_records" not in named(found["spans"], "storm")["attributes"]
    switches = [span for span in kernel(found["spans"]) if span["name"] == "sched_switch"]
    assert found["switches"] <= len(switches) <= found["switches"] + 4


def failing_processor():
    """A provider whose processor raises at each kernel span."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    import ebpftrace

    class Broken(SpanProcessor):
        def on_end(self, span):
            """Raise."""
            raise RuntimeError(span.name)

    session = ebpftrace.start()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Broken())
    span = provider.get_tracer("app").start_span("job")
    with trace.use_span(span, end_on_exit=False), ebpftrace.enable("sched"):
        time.sleep(0.02)
    session.flush()
    return session.stats()


def test_failing_processor():
    """A span processor that raises costs its own spans: they are counted as failed, and the reader lives."""
    outcome = run(failing_processor)
    spans = outcome.value["spans"]

    assert spans["failed"] == spans["emitted"] > 0
    assert outcome.value["active"]
    assert 0 == outcome.value["reader"]["errors"]


def slow_start_of_reader():
    """Stop right after a burst: what is in the ring then is still brought in."""
    import ebpftrace

    app = App(min_off_cpu_us=0)
    ours, theirs = os.pipe()
    with app.traced("burst", "sched"):
        for _ in range(500):
            thread = threading.Timer(0, os.write, (theirs, b"x"))
            thread.start()
            os.read(ours, 1)
            thread.join()
    ebpftrace.stop()
    return {"spans": len(kernel(app.spans())), "own": len(own(app.spans()))}


def test_stop_brings_in_the_last_records():
    """stop() loses nothing of what the kernel had submitted."""
    found = run(slow_start_of_reader).value

    assert 1 == found["own"]
    assert found["spans"] >= 500


def failing_batch(place):
    """The first batch of records makes an error of our own, where it is decoded or where it is passed on."""
    owner = pkgutil.resolve_name(place.rpartition(".")[0])
    name = place.rpartition(".")[2]
    original, failed = getattr(owner, name), []

    def fail_once(*args):
        if not failed:
            failed.append(place)
            raise ZeroDivisionError(place)
        return original(*args)

    setattr(owner, name, fail_once)
    app = App()
    for job in ("lost", "brought in"):
        with app.traced(job, "sched"):
            time.sleep(0.01)
        app.session.flush()
    return {"spans": app.spans(), "reader": app.session.stats()["reader"]}


@pytest.mark.parametrize(
    "place", ["ebpftrace.spans.plan:RingPlan.decode", "ebpftrace.runtime.otel:ProviderBinding.emit"]
)
def test_failing_batch(place):
    """Records of a batch that could not be passed on are counted as lost, with one warning; later ones arrive."""
    outcome = run(failing_batch, place)
    spans, reader = outcome.value["spans"], outcome.value["reader"]

    assert reader["lost_records"] > 0
    # a switch, a wake-up and a wait; the batch may have ended before the last of them
    assert len(below(spans, named(spans, "lost"))) + reader["lost_records"] >= 3
    assert "sleep" in {span["name"] for span in below(spans, named(spans, "brought in"))}
    assert 1 == reader["errors"]
    [line] = outcome.log
    assert "could not be passed on" in line
