# SPDX-License-Identifier: Apache-2.0
"""How many records a second become spans without one being lost, through the real reader thread.

A process of its own has a BPF program submit the scheduler's records into a ring of the default size, at an even
rate; the highest rate at which every counter of lost records stays at zero is searched for. What is measured is how
far the whole path goes on this machine: the ring, the decoding, and a sink.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

from _harness import arguments, compile_bpf, cpu_ns, machine, no_gc, report, say
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

from ebpftrace.config.resolve import resolve
from ebpftrace.kernel._native import lib
from ebpftrace.kernel.object import BpfObject
from ebpftrace.kernel.ringbuf import Batch, RingReader
from ebpftrace.programs import find
from ebpftrace.runtime.loader import LoadedProgram
from ebpftrace.settings import Settings
from ebpftrace.spans.clock import Clock
from ebpftrace.spans.pipeline import SdkPipeline
from ebpftrace.spans.reader import Reader
from ebpftrace.spans.sdk import SdkSink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RECORDS_PER_RUN = 30  # storm.bpf.c
MORE_THAN_ANYBODY_CAN = 1e6
STEP = 0.93


class Counting(SpanExporter):
    """Takes spans and counts them: keeping them would measure the memory."""

    def __init__(self, encode: Callable[[Sequence[ReadableSpan]], Any] | None = None) -> None:
        self.spans = 0
        self._encode = encode

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Count, and encode if asked to."""
        if self._encode is not None:
            self._encode(spans)
        self.spans += len(spans)
        return SpanExportResult.SUCCESS


class DecodeOnly:
    """A sink that counts what it is given."""

    def __init__(self) -> None:
        self.spans = 0

    def emit(self, spans: Sequence[Any]) -> None:
        """Count."""
        self.spans += len(spans)

    def arrived(self) -> int:
        """Return how many spans came out at the far end."""
        return self.spans


class Sdk:
    """An application's provider with one processor and an exporter that counts."""

    def __init__(self, processor: Callable[[SpanExporter], SpanProcessor], exporter: Counting) -> None:
        self._exporter = exporter
        self._provider = TracerProvider()
        self._provider.add_span_processor(processor(exporter))
        self.emit = SdkSink(self._provider).emit

    def arrived(self) -> int:
        """Return how many spans the exporter has got, after a flush."""
        self._provider.force_flush()
        self._provider.shutdown()
        return self._exporter.spans


def encode(spans: Sequence[ReadableSpan]) -> bytes:
    """Do what the SDK's OTLP exporters do before they send."""
    data: bytes = encode_spans(spans).SerializeToString()
    return data


SINKS: dict[str, tuple[Callable[[], Any], int | None]] = {
    "decode_only": (DecodeOnly, None),
    "sdk_simple": (lambda: Sdk(SimpleSpanProcessor, Counting()), 30_000),
    "sdk_batch": (lambda: Sdk(BatchSpanProcessor, Counting()), 30_000),
    "sdk_batch_otlp": (lambda: Sdk(BatchSpanProcessor, Counting(encode)), None),
}


class Storm:
    """The producer's program, loaded, with a ring of the default size."""

    def __init__(self) -> None:
        self.object = BpfObject("storm", compile_bpf("storm.bpf.c"))
        ring_bytes = Settings().ring_kib * 1024
        for unused in ("processes", "publishers", "lines", "slots", "thread_lines"):
            self.object.skip_map(unused)
        self.object.set_ring_bytes("events", ring_bytes)
        self.object.set_rodata("ebt_wakeup_bytes", ring_bytes // 4)
        self.object.load()
        self._fd = lib.bpf_program__fd(self.object._program("storm"))

    def program(self) -> LoadedProgram:
        """Return it as the reader knows programs; its records are those of `sched`."""
        layouts = resolve("sched", "sched-trace.yaml", find("sched").config(), self.object)
        return LoadedProgram("sched", self.object, layouts, 1)

    def blow(self, rate: float, seconds: float) -> int:
        """Submit records at an even rate from another process, in bursts each millisecond; return how many."""
        source, sink = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(sink, str(self._blow(rate, seconds)).encode())
            os._exit(0)
        os.close(sink)
        with os.fdopen(source) as answer:
            submitted = int(answer.read())
        os.waitpid(child, 0)
        return submitted

    def _blow(self, rate: float, seconds: float) -> int:
        start, submitted = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            while submitted < elapsed * rate:
                lib.ebt_run_once(self._fd, 0)
                submitted += RECORDS_PER_RUN
            time.sleep(0.001)
        return submitted


class Attempt:
    """One rate: what was submitted, what arrived, and how long it took until all had."""

    def __init__(self, storm: Storm, sink: Any, rate: float, seconds: float) -> None:
        program = storm.program()
        dropped = sum(program.drops().values())
        pipeline = SdkPipeline([program.layouts], sink.emit)
        reader = Reader({0: program.events}, pipeline.consume)
        start = time.perf_counter()
        submitted = storm.blow(rate, seconds)
        reader.flush(10)
        arrived = sink.arrived()
        # what the ring still held when the storm was over must not flatter the rate
        self.rate = arrived / (time.perf_counter() - start)
        reader.close()
        self.lost = submitted - arrived
        dropped = sum(program.drops().values()) - dropped
        read = pipeline.stats()["sched"]
        if read.records + dropped != submitted or any(read.undecoded.values()) or self.lost < dropped:
            sys.exit(f"of {submitted} records {read.records} were read and {dropped} counted as lost")


def highest_rate(storm: Storm, make_sink: Callable[[], Any], seconds: float) -> float:
    """Return the highest rate found at which nothing was lost."""
    rate = 1.2 * Attempt(storm, make_sink(), MORE_THAN_ANYBODY_CAN, seconds / 2).rate
    while rate > 1:
        attempt = Attempt(storm, make_sink(), rate, seconds)
        say(f"{rate:12,.0f} records/s: {attempt.lost} lost")
        if not attempt.lost:
            return attempt.rate
        rate *= STEP
    sys.exit("records are lost at any rate")


def decode_cost(storm: Storm, rounds: int) -> list[float]:
    """Return ns of CPU time for a record, from bytes in a batch to a span."""
    spans: list[int] = []
    program = storm.program()
    pipeline, clock = SdkPipeline([program.layouts], lambda found: spans.append(len(found))), Clock()
    costs = []
    with RingReader() as rings, no_gc():
        rings.add(program.events, 0)
        for _ in range(rounds):
            storm.blow(1e6, 0.003)
            batch = rings.wait(interval_ms=1, timeout_ms=100)
            if batch.records:
                costs.append(cpu_ns(lambda count: _consume(pipeline, batch, clock, count), 3) / batch.records)  # noqa: B023
        while rings.wait(interval_ms=1, timeout_ms=0).records:
            pass  # what is left would be counted with the first rate's
    return costs


def _consume(pipeline: SdkPipeline, batch: Batch, clock: Clock, count: int) -> None:
    for _ in range(count):
        pipeline.consume(batch, clock)


def main() -> None:
    quick = arguments(__doc__).quick
    say(machine())
    storm = Storm()
    report("decode", decode_cost(storm, 3 if quick else 50), "ns")
    for name, (make_sink, target) in SINKS.items():
        say(name)
        rates = [highest_rate(storm, make_sink, 0.1 if quick else 1) for _ in range(1 if quick else 2)]
        report(f"{name}_without_loss", rates, "spans/s", **({"target": target} if target else {}))
    report("peak_memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")
    storm.object.close()


if __name__ == "__main__":
    main()
