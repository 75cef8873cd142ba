# SPDX-License-Identifier: Apache-2.0
"""Kernel spans come under the span that enabled them, and under no other."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from harness import App, below, kernel, named, own, run

MS = 1_000_000


def siblings():
    """One span with the program, one without, below a third."""
    app = App()
    with app.span("root"):
        with app.traced("on", "sched"):
            time.sleep(0.02)
        with app.span("off"):
            time.sleep(0.02)
    return app.spans()


def test_only_the_enabled_span():
    """A span that enabled a program has its kernel spans; its sibling and its parent have none."""
    spans = run(siblings).value

    assert {"sched_switch", "sched_wakeup", "sleep"} <= {span["name"] for span in below(spans, named(spans, "on"))}
    assert [] == below(spans, named(spans, "off"))
    assert [] == below(spans, named(spans, "root"))


def test_identity():
    """Kernel spans have unique ids of their own, and their parent's trace."""
    spans = run(siblings).value
    on = named(spans, "on")
    ids = [span["id"] for span in spans]

    assert len(ids) == len(set(ids))
    assert "0" * 16 not in ids
    assert {on["trace"]} == {span["trace"] for span in kernel(spans)}
    assert {on["id"]} == {span["parent"] for span in kernel(spans)}


def test_times():
    """Kernel spans lie inside their parent's time, and a sleep is as long as it was."""
    spans = run(siblings).value
    on = named(spans, "on")

    for span in below(spans, on):
        assert on["start"] - MS <= span["start"] <= span["end"] <= on["end"] + MS, span
    slept = next(span for span in below(spans, on) if span["name"] == "sleep")
    assert 19 * MS <= slept["wall"] <= on["wall"]


def test_attributes():
    """A wait says which thread waited, on which CPU, in which system call; a program says its name and hook."""
    spans = run(siblings).value
    slept = next(span for span in kernel(spans) if span["name"] == "sleep")["attributes"]

    assert "clock_nanosleep" == slept["ebpftrace.sched.syscall"]
    assert slept["process.pid"] == slept["thread.id"]
    assert slept["cpu.logical_number"] >= 0
    assert ("sched", "tp_btf/sched_switch") == (slept["ebpftrace.program"], slept["ebpftrace.hook"])


def nested(children):
    """An enabled span around another, with sleeps before, in and after."""
    app = App()
    with app.traced("outer", "sched", children=children):
        time.sleep(0.01)
        with app.span("inner"):
            time.sleep(0.01)
        time.sleep(0.01)
    return app.spans()


@pytest.mark.parametrize("children", [False, True])
def test_children(children):
    """Spans inside an enabled span are traced only with children=True; after them the outer span is again."""
    spans = run(nested, children).value
    sleeps = {
        name: len([span for span in below(spans, named(spans, name)) if span["name"] == "sleep"])
        for name in ("outer", "inner")
    }

    assert {"outer": 2, "inner": int(children)} == sleeps


def after_the_block():
    """Sleeps inside and after enable(), in one span."""
    import ebpftrace

    app = App()
    with app.span("both"):
        with ebpftrace.enable("sched"):
            time.sleep(0.01)
        time.sleep(0.03)
    return app.spans()


def test_disabled_after_the_block():
    """At the end of enable() the span is no longer traced."""
    spans = run(after_the_block).value

    [slept] = [span for span in kernel(spans) if span["name"] == "sleep"]
    assert slept["wall"] < 30 * MS


def unsampled():
    """An enabled span that the sampler turned down."""
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    app = App(sampler=ALWAYS_OFF, enable=["sched"])
    with app.traced("unsampled", "sched", "exec"):
        time.sleep(0.02)
    return {"spans": app.spans(), "records": app.session.stats()["programs"]["sched"]["records"]}


def test_unsampled():
    """A span that is not sampled costs no record and has no kernel spans."""
    assert {"spans": [], "records": 0} == run(unsampled).value


def by_default():
    """A program that is enabled for every span, and one span that enables another."""
    app = App(enable=["sched"])
    with app.span("plain"):
        time.sleep(0.01)
        with app.traced("more", "exec"):
            time.sleep(0.01)
    return app.spans()


def test_enabled_for_all():
    """start(enable=...) traces every sampled span, whatever else it enables."""
    spans = run(by_default).value

    for name in ("plain", "more"):
        assert "sleep" in {span["name"] for span in below(spans, named(spans, name))}


def other_program():
    """Only the program `exec` is enabled, and loaded."""
    app = App(programs=["exec"])
    with app.traced("job", "sched"):
        time.sleep(0.01)
    return {"spans": app.spans(), "programs": list(app.session.stats()["programs"])}


def test_program_that_is_not_loaded():
    """Enabling a program that start() left out does nothing; nor is there a breakdown, which `sched` makes."""
    found = run(other_program).value

    assert ["exec"] == found["programs"]
    assert [("job", {})] == [(span["name"], span["times"]) for span in found["spans"]]


def threshold():
    """A wait below the threshold and one above it."""
    app = App(min_off_cpu_us=20_000)
    with app.traced("job", "sched"):
        time.sleep(0.005)
        time.sleep(0.05)
    return app.spans()


def test_threshold():
    """A wait shorter than min_off_cpu_us makes no span, and is in the breakdown all the same."""
    spans = run(threshold).value

    assert 1 == len([span for span in kernel(spans) if span["name"] == "sleep"])
    assert named(spans, "job")["times"]["sleep"] >= 53 * MS


def woken():
    """A lock that another thread, of a name of its own, gives back."""
    app = App()
    lock, held, facts = threading.Lock(), threading.Event(), {}

    def hold():
        with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as comm:  # noqa: PTH123
            comm.write("holder")
        facts["holder"] = threading.get_native_id()
        with lock:
            held.set()
            time.sleep(0.05)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with app.traced("job", "sched"), lock:
        pass
    thread.join()
    return {"spans": app.spans(), **facts}


def test_waker():
    """A wait for a lock says which thread ended it."""
    found = run(woken).value

    waited = max((span for span in kernel(found["spans"]) if span["name"] == "lock"), key=lambda span: span["wall"])
    assert found["holder"] == waited["attributes"]["ebpftrace.sched.waker.tid"]
    assert "holder" == waited["attributes"]["ebpftrace.sched.waker.comm"]


def service():
    """The resource of kernel spans."""
    app = App(service_name="the-kernel")
    with app.traced("job", "sched"):
        time.sleep(0.01)
    return app.spans()


def test_service_name():
    """Kernel spans come from a service of their own, named by service_name."""
    spans = run(service).value

    assert {"the-kernel"} == {span["service"] for span in kernel(spans)}
    assert {"the-kernel"}.isdisjoint(span["service"] for span in own(spans))


def decorated():
    """Functions with @traced: plain, named, a coroutine, one that raises."""
    from opentelemetry import trace

    import ebpftrace

    app = App()
    trace.set_tracer_provider(app.provider)

    @ebpftrace.traced
    def plain():
        time.sleep(0.01)
        return 1

    @ebpftrace.traced("sched", name="by name")
    def with_name():
        time.sleep(0.01)

    @ebpftrace.traced("sched")
    async def coroutine():
        time.sleep(0.01)  # noqa: ASYNC251  (what a coroutine should not do is what is looked for)
        return 2

    @ebpftrace.traced
    def failing():
        raise KeyError("mine")

    results = [plain(), with_name(), asyncio.run(coroutine())]
    with pytest.raises(KeyError, match="mine"):
        failing()
    return {"results": results, "spans": app.spans()}


def test_decorator():
    """@traced makes a span with kernel spans, and neither results nor exceptions change."""
    found = run(decorated).value
    names = {span["name"].rpartition(".")[2]: span for span in own(found["spans"])}

    assert [1, None, 2] == found["results"]
    assert {"plain", "by name", "coroutine", "failing"} == set(names)
    for name in ("plain", "by name", "coroutine"):
        assert "sleep" in {span["name"] for span in below(found["spans"], names[name])}
    assert names["failing"]["error"] == "KeyError: 'mine'"


def every_switch():
    """Count the switches of one traced thread in two ways."""
    import resource

    app = App(min_off_cpu_us=10_000_000)
    with app.traced("job", "sched"):
        before = resource.getrusage(resource.RUSAGE_THREAD)
        for _ in range(200):
            time.sleep(0.0005)
        after = resource.getrusage(resource.RUSAGE_THREAD)
    switches = after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw
    return {"switches": switches, "spans": app.spans()}


def test_every_switch():
    """There is a sched_switch span for every switch that the kernel's own accounting has, none twice."""
    found = run(every_switch).value

    seen = len([span for span in kernel(found["spans"]) if span["name"] == "sched_switch"])
    assert found["switches"] <= seen <= found["switches"] + 4  # a few between the span's start and the first count
