# SPDX-License-Identifier: Apache-2.0
"""Threads: each has its own slot, and its own kernel spans."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from harness import App, below, kernel, own, run


def _work(app, name, seconds=0.002):
    """A traced span that notes its thread, and sleeps."""
    with app.traced(name, "sched") as span:
        span.set_attribute("tid", threading.get_native_id())
        time.sleep(seconds)


def crowd():
    """Sixteen threads and a pool, with spans of their own at the same time."""
    app = App()
    threads = [
        threading.Thread(target=lambda n=n: [_work(app, f"thread {n}.{i}") for i in range(20)]) for n in range(16)
    ]
    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: _work(app, f"pool {n}"), range(100)))
    for thread in threads:
        thread.join()
    return {"spans": app.spans(), "stats": app.session.stats()}


def test_own_thread():
    """With many threads at once, every kernel span is under the span that ran on the very thread it is about."""
    found = run(crowd).value
    spans = found["spans"]
    tid = {span["id"]: span["attributes"]["tid"] for span in own(spans)}
    wrong = [span for span in kernel(spans) if span["attributes"]["thread.id"] != tid[span["parent"]]]

    assert 16 * 20 + 100 == len(tid)
    assert [] == wrong
    for span in own(spans):  # a thread that got no CPU until its sleep was over did not sleep
        slept = span["times"].get("sleep", 0) >= 200_000
        assert not slept or "sleep" in {each["name"] for each in below(spans, span)}, span
    assert len(kernel(spans)) > len(own(spans))
    assert {"no_slot": 0, "errors": 0} == found["stats"]["publisher"]


def churn(count):
    """Many short threads, a few at a time, each with a span."""
    app = App()

    def short():
        with app.span("short"):
            pass

    for _ in range(count // 10):
        threads = [threading.Thread(target=short) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {"spans": len(own(app.spans())), "stats": app.session.stats()}


def test_slots_are_used_again():
    """Three thousand threads, a few at a time, find slots: an ended thread gives its own back."""
    found = run(churn, 3000).value

    assert 3000 == found["spans"]
    assert {"no_slot": 0, "errors": 0} == found["stats"]["publisher"]
    assert 3000 == found["stats"]["breakdown"]["measured"]


def too_many():
    """More live threads with a span than the table has slots; and one more when they are gone."""
    app = App()
    threading.stack_size(128 << 10)
    release, ready = threading.Event(), threading.Semaphore(0)

    def wait():
        with app.traced("waiting", "sched"):
            ready.release()
            release.wait()

    threads = [threading.Thread(target=wait) for _ in range(1200)]
    for thread in threads:
        thread.start()
    for _ in threads:
        ready.acquire()
    release.set()
    for thread in threads:
        thread.join()
    full = app.session.stats()["publisher"]
    app.session.flush(10)  # so many threads can fill the ring; that is another test's
    late = threading.Thread(target=_work, args=(app, "late", 0.1))  # a thread without a CPU for that long did not sleep
    late.start()
    late.join()
    stats = app.session.stats()
    return {"spans": app.spans(), "full": full, "after": stats["publisher"], "stats": stats}


def test_full_table():
    """Threads that find the table full are counted and untraced, their spans go on, and later threads find room."""
    found = run(too_many).value
    [late] = [span for span in own(found["spans"]) if span["name"] == "late"]
    measured = [span for span in own(found["spans"]) if span["times"]]

    assert 1201 == len(own(found["spans"]))
    assert 1200 - 1024 <= found["full"]["no_slot"] < 600
    assert found["full"] == found["after"]
    assert 1201 - found["full"]["no_slot"] == len(measured)
    assert "sleep" in {span["name"] for span in below(found["spans"], late)}, (late, found["stats"])


def carried():
    """A context that is carried to another thread by hand."""
    from opentelemetry import context

    import ebpftrace

    app = App()
    with app.span("origin") as span, ebpftrace.enable("sched", children=True):
        carried_context = context.get_current()

        def work():
            token = context.attach(carried_context)
            time.sleep(0.01)
            with app.span("below"):
                time.sleep(0.01)
            context.detach(token)

        thread = threading.Thread(target=work)
        thread.start()
        span.set_attribute("tid", thread.native_id)
        thread.join()
    return app.spans()


def test_carried_context():
    """A context attached in another thread is traced there, and what enable(children=True) said goes with it."""
    spans = run(carried).value
    origin, inner = (next(span for span in own(spans) if span["name"] == name) for name in ("origin", "below"))
    there = origin["attributes"]["tid"]

    for parent in (origin, inner):
        found = {span["attributes"]["thread.id"] for span in below(spans, parent) if span["name"] == "sleep"}
        assert {there} == found
