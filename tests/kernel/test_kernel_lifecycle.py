# SPDX-License-Identifier: Apache-2.0
"""However a process ends, the kernel holds nothing of it, and on a regular end the last spans are exported."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import machine
import pytest
from harness import App, kernel, run


def ending(how, report):
    """Trace, say what the kernel holds, and end."""
    app = App()
    with app.traced("job", "sched"):
        time.sleep(0.01)
        report(machine.bpf_ids())
        if how.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, how))
        elif how == "exception":
            raise RuntimeError("mine")
        elif how == "os._exit":
            os._exit(5)
        else:
            sys.exit(3)


@pytest.mark.parametrize(
    ("how", "exit_code"),
    [("SIGTERM", -15), ("SIGKILL", -9), ("SIGSEGV", -11), ("exception", 1), ("sys.exit", 3), ("os._exit", 5)],
)
def test_nothing_left(how, exit_code):
    """A process that ends, in whatever way, leaves no program, map or link in the kernel."""
    ids = [tuple(each) for each in run(ending, how, stop=False, exit_code=exit_code).value]

    assert {"prog_id", "map_id", "link_id"} == {kind for kind, _ in ids}
    assert [] == machine.remaining(ids)


def last_spans(order, batch, report):
    """A short script: its provider and the library, and then its end, with nothing flushed by hand."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    import ebpftrace

    processor = BatchSpanProcessor if batch else SimpleSpanProcessor
    if order == "start first":
        ebpftrace.start()
    provider = TracerProvider()
    provider.add_span_processor(processor(ConsoleSpanExporter(formatter=lambda span: f"{span.name}\n")))
    trace.set_tracer_provider(provider)
    if order == "provider first":
        ebpftrace.start()
    with trace.get_tracer("app").start_as_current_span("job"), ebpftrace.enable("sched"):
        time.sleep(0.01)
    report(machine.bpf_ids())


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("order", ["start first", "provider first"])
def test_last_spans(order, batch):
    """A script that just ends has its last kernel spans exported, whichever was there first."""
    outcome = run(last_spans, order, batch, stop=False)

    assert {"job", "sleep", "sched_switch", "sched_wakeup"} <= set(outcome.output.split())
    assert [] == outcome.log
    assert "" == outcome.errors
    assert [] == machine.remaining([tuple(each) for each in outcome.value])


def provider_is_gone():
    """A provider that nobody holds any more when its last kernel spans come."""
    import gc

    import ebpftrace

    app = App()
    with app.traced("job", "sched"):
        time.sleep(0.01)
    session = app.session
    del app
    gc.collect()
    session.flush()
    began = time.monotonic()
    ebpftrace.stop()
    return {"stats": session.stats()["spans"], "seconds": time.monotonic() - began}


def test_provider_is_gone():
    """Kernel spans whose provider is gone are counted as dropped; no exporter is made up that nobody asked for."""
    outcome = run(provider_is_gone)
    stats = outcome.value["stats"]

    assert stats["dropped"] > 0
    assert stats["emitted"] == stats["dropped"] + stats["exported"]
    assert outcome.value["seconds"] < 3
    assert "" == outcome.errors


def again():
    """Stop, work untraced, start again; the application keeps its tracer."""
    import ebpftrace

    app = App()
    found = []
    for _ in range(3):
        app.exporter.clear()
        session = ebpftrace.start()
        with app.traced("on", "sched"):
            time.sleep(0.01)
        spans = app.spans()
        ebpftrace.stop()
        app.exporter.clear()
        with app.traced("off", "sched"):
            time.sleep(0.01)
        found.append({"on": spans, "off": app.spans(), "reason": session.reason, "fds": machine.bpf_fds()})
    return found


def test_start_again():
    """After stop() nothing is traced, and after start() everything is, time and again."""
    for found in run(again).value:
        assert "sleep" in {span["name"] for span in kernel(found["on"])}
        assert [("off", {})] == [(span["name"], span["times"]) for span in found["off"]]
        assert [] == found["fds"]
        assert "it was stopped" == found["reason"]


def in_the_middle():
    """stop() and start() while a span is current."""
    import ebpftrace

    app = App()
    with app.traced("job", "sched"):
        time.sleep(0.01)
        ebpftrace.stop()
        time.sleep(0.01)
        ebpftrace.start()
        time.sleep(0.01)
    return app.spans()


def test_stop_inside_a_span():
    """stop() and start() inside a span harm neither the span nor the application."""
    outcome = run(in_the_middle)

    assert "job" in {span["name"] for span in outcome.value}
    assert [] == outcome.log


def context_manager():
    """The session as a context manager, left by an exception."""
    import ebpftrace

    session = ebpftrace.start()
    active = session.active
    with pytest.raises(KeyError), session:
        raise KeyError
    return [active, session.active, machine.bpf_fds(), ebpftrace.stats()["active"]]


def test_context_manager():
    """Leaving the session's block stops it."""
    assert [True, False, [], False] == run(context_manager).value


def cycles(count):
    """Start and stop many times; what the process holds after the first time and after the last."""
    import resource
    import threading

    import ebpftrace

    app = App()
    ebpftrace.stop()

    def held():
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), resource.getrusage(0).ru_maxrss

    for number in range(count):
        ebpftrace.start()
        with app.span("job"):
            pass
        ebpftrace.stop()
        if number == 4:
            before = held()
    return {"before": before, "after": held(), "processors": len(app.provider._active_span_processor._span_processors)}


def test_cycles():
    """Starting and stopping again and again leaks neither descriptors, nor threads, nor memory, nor processors."""
    found = run(cycles, 40).value
    (fds, threads, kib), (fds_then, threads_then, kib_then) = found["before"], found["after"]

    assert (fds, threads) == (fds_then, threads_then)
    assert kib_then - kib < 20 * 1024
    assert found["processors"] == 2


def without_start():
    """The public functions without start()."""
    import ebpftrace

    @ebpftrace.traced
    def work():
        return 1

    with ebpftrace.enable("sched"):
        result = work()
    ebpftrace.stop()
    return [result, ebpftrace.stats()]


def test_without_start():
    """Without start(), enable() and traced do nothing but run the code."""
    result, stats = run(without_start).value

    assert 1 == result
    assert not stats["active"]


def counted():
    """Everything that a session counts."""
    app = App()
    with app.traced("job"):
        time.sleep(0.01)
    spans = app.spans()
    return {"stats": app.session.stats(), "spans": len(kernel(spans))}


def test_stats():
    """stats() accounts for every record: read, decoded, emitted, exported."""
    found = run(counted).value
    stats = found["stats"]

    assert stats["active"]
    assert "" == stats["reason"]
    assert found["spans"] == sum(program["records"] for program in stats["programs"].values())
    assert {"emitted": found["spans"], "exported": found["spans"], "failed": 0, "dropped": 0} == stats["spans"]
    assert {"errors": 0, "no_slot": 0} == stats["publisher"]


def stats_beside_stop(rounds):
    """Two threads that ask for stats() all the time, while the library starts and stops."""
    import ebpftrace

    done, errors = threading.Event(), []

    def ask():
        while not done.is_set():
            try:
                ebpftrace.stats()
            except Exception as error:  # noqa: BLE001  (it is the result)
                errors.append(repr(error))
            time.sleep(0)  # let start() have the interpreter

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(rounds):
        ebpftrace.start()
        time.sleep(0.05)
        ebpftrace.stop()
    done.set()
    for thread in threads:
        thread.join()
    return errors


def test_stats_beside_stop():
    """stats() never raises, though another thread unloads the programs whose counters it reads."""
    assert [] == run(stats_beside_stop, 8).value


def stopped_by_an_exporter():
    """An exporter that stops the library when the kernel's spans reach it, which they do in the reader's thread."""
    import ebpftrace

    app, threads = App(), []
    export = app.exporter.export

    def stop_and_export(spans):
        if any("ebpftrace.program" in span.attributes for span in spans):
            threads.append(threading.current_thread().name)
            ebpftrace.stop()
        return export(spans)

    app.exporter.export = stop_and_export
    with app.traced("job", "sched"):
        time.sleep(0.01)
    app.session.flush()
    fds_gone = machine.until(lambda: not machine.bpf_fds(), timeout_s=3)
    machine.until(lambda: threading.active_count() == 1, timeout_s=3)
    left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return {"unloaded": fds_gone, "left": left, "threads": threads, "reason": app.session.reason}


def test_stopped_by_an_exporter():
    """stop() in the reader's own thread does not wait for itself, and everything is unloaded soon after."""
    outcome = run(stopped_by_an_exporter)
    found = outcome.value

    assert {"ebpftrace-reader"} == set(found["threads"])
    assert found["unloaded"]
    assert [] == found["left"]
    assert "it was stopped" == found["reason"]
    assert [] == outcome.log


def stopped_by_a_span():
    """A span of another make, asked for its context in the middle of attach(), has the library stopped meanwhile."""
    import opentelemetry.context as otel
    from opentelemetry.trace import INVALID_SPAN, SpanContext, TraceFlags, set_span_in_context

    import ebpftrace

    class Vendor(type(INVALID_SPAN)):
        def __init__(self):  # the SDK's spans have a _context; this has none
            pass

        def get_span_context(self):
            """Stop the library first."""
            ebpftrace.stop()
            return SpanContext(5, 7, False, TraceFlags(1))

    ebpftrace.start()
    context = set_span_in_context(Vendor())
    otel.detach(otel.attach(context))
    return ebpftrace.stats()["active"]


def test_stopped_by_a_span():
    """A span whose get_span_context() stops the library is not written into a table that is gone."""
    assert not run(stopped_by_a_span).value
