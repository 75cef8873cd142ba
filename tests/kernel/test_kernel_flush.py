# SPDX-License-Identifier: Apache-2.0
"""Flushing is bounded: by records that never pause, by an exporter that is too slow, by a stop() at the same time."""

from __future__ import annotations

import contextlib
import threading
import time

from harness import App, run


@contextlib.contextmanager
def _busy(tracer, threads):
    """Threads that sleep and wake all the time, in spans, so that records never pause."""
    done = threading.Event()

    def work():
        import ebpftrace

        with tracer.start_as_current_span("busy"), ebpftrace.enable("sched"):
            while not done.is_set():
                time.sleep(0.001)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        time.sleep(0.2)
        yield
    finally:
        done.set()
        for worker in workers:
            worker.join()


def slow_sink():
    """A sink that takes longer over each batch than it takes the kernel to have the next record."""
    from ebpftrace.runtime.otel import ProviderBinding

    emit = ProviderBinding.emit

    def slowly(self, spans):
        time.sleep(0.02)
        emit(self, spans)

    ProviderBinding.emit = slowly
    app = App()
    with _busy(app.tracer, threads=1):
        began = time.monotonic()
        flushed = app.session.flush(3)
        return {"flushed": flushed, "seconds": time.monotonic() - began}


def test_records_without_a_pause():
    """flush() is done when the rings were empty for a moment; it does not wait for records to cease."""
    found = run(slow_sink).value

    assert found["flushed"]
    assert found["seconds"] < 1


def slow_exporter(timeout_ms):
    """An exporter that the kernel's spans overwhelm, in front of the application's batch exporter."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    import ebpftrace

    slow = threading.Event()

    class Slow(InMemorySpanExporter):
        def export(self, spans):
            """Take 2 ms a span."""
            if slow.is_set():
                time.sleep(0.002)
            return super().export(spans)

    ebpftrace.start()
    batch, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Slow()))
    provider.add_span_processor(
        BatchSpanProcessor(batch, schedule_delay_millis=60_000, max_queue_size=100_000, max_export_batch_size=50_000)
    )
    tracer = provider.get_tracer("app")
    slow.set()
    with _busy(tracer, threads=4):
        with tracer.start_as_current_span("important"):
            pass
        began = time.monotonic()
        flushed = provider.force_flush(timeout_ms)
        seconds = time.monotonic() - began
        exported = "important" in {span.name for span in batch.get_finished_spans()}
    slow.clear()  # what is left is brought in by stop()
    return {"flushed": flushed, "seconds": seconds, "exported": exported}


def test_slow_exporter():
    """force_flush() leaves time to the application's processors when the kernel's spans cannot all be brought in."""
    found = run(slow_exporter, 2000).value

    assert found["flushed"]
    assert found["exported"]
    assert found["seconds"] < 1.5


def flush_beside_stop(rounds):
    """Three threads that flush all the time, and a stop() in between."""
    import ebpftrace

    app, done, durations, errors = App(), threading.Event(), [], []

    def flush():
        while not done.is_set():
            began = time.monotonic()
            try:
                app.session.flush(3)
            except Exception as error:  # noqa: BLE001  (it is the result)
                errors.append(repr(error))
            durations.append(time.monotonic() - began)

    for _ in range(rounds):
        app.session = ebpftrace.start()
        done.clear()
        threads = [threading.Thread(target=flush) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        ebpftrace.stop()
        time.sleep(0.02)
        done.set()
        for thread in threads:
            thread.join()
    return {"slowest": max(durations), "errors": errors}


def test_flush_beside_stop():
    """A flush() while another thread stops the library neither waits for an answer that never comes nor raises."""
    found = run(flush_beside_stop, 4).value

    assert [] == found["errors"]
    assert found["slowest"] < 1
