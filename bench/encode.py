# SPDX-License-Identifier: Apache-2.0
"""How many records a second become OTLP bytes on one core: by the encoder in C, and through the SDK.

The record has a head as every program's and six labels: two ids, a CPU, a state that is a word, a flag, a command's
name. Records differ in all of them, as those of a busy machine do. A second kind has what C asks Python about: each
answer is made once. All ways run in turn, in one process on one CPU, over the same batches.
"""

from __future__ import annotations

import random
import resource
import struct
import time
from typing import TYPE_CHECKING, Any

from _harness import arguments, interleaved, machine, on_one_cpu, report, say
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as sdk_encode

from ebpftrace.config.layout import Column, RecordLayout
from ebpftrace.config.model import DecoderConfig
from ebpftrace.kernel.ringbuf import Batch
from ebpftrace.spans.clock import Clock
from ebpftrace.spans.otlp.message import request_message, resource_message, scope_message
from ebpftrace.spans.pipeline import NativePipeline, SdkPipeline
from ebpftrace.spans.protobuf import encode_spans
from ebpftrace.spans.resource import kernel_resource
from ebpftrace.spans.sdk import SCOPE_NAME, SpanBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ebpftrace.spans.model import KernelSpan

BATCH_BYTES = 256 * 1024  # EBT_BATCH_BYTES
RECORD = struct.Struct("=QIIQQQQQ" + "IIIIB3x16s")
HEAD = (
    Column("start", "start", "", 0, 8, "unsigned"),
    Column("trace_id", "trace_id", "", 16, 16, "raw"),
    Column("parent_span_id", "parent_span_id", "", 32, 8, "raw"),
    Column("span_id", "span_id", "", 40, 8, "raw"),
    Column("duration", "duration", "", 48, 8, "unsigned"),
)
STATES = {number: f"state_{number}" for number in range(8)}
NATIVE = (
    Column("pid", "", "process.pid", 56, 4, "unsigned"),
    Column("tid", "", "thread.id", 60, 4, "unsigned"),
    Column("cpu", "", "cpu.logical_number", 64, 4, "unsigned"),
    Column("preempt", "", "ebpftrace.sched.preempt", 72, 1, "bool"),
    Column("comm", "", "ebpftrace.sched.next.comm", 76, 16, "char"),
)
SIX = (
    *NATIVE,
    Column("state", "", "state", 68, 4, "unsigned", None, (DecoderConfig("static_map", STATES),)),
)
ASKING = (
    *NATIVE[:3],
    Column("name", "span_name", "", 76, 16, "char", None, (DecoderConfig("exec_name"),)),
    Column("state", "", "state", 68, 4, "unsigned", None, (DecoderConfig("task_state"),)),
    Column("syscall", "", "syscall", 68, 4, "unsigned", None, (DecoderConfig("syscall"),)),
    Column("args", "", "process.command_args", 76, 16, "char", None, (DecoderConfig("argv"),)),
)


def layout(columns: Sequence[Column]) -> RecordLayout:
    attributes = {"ebpftrace.program": "bench", "ebpftrace.hook": "tp_btf/sched_switch"}
    where, columns = "bench.yaml: span 'wait'", (*HEAD, *columns)
    return RecordLayout("bench", where, "wait", "events", "", "", 1, 8, RECORD.size, columns, attributes)


def batch() -> Batch:
    """A full one, as the reader hands it over."""
    dice = random.Random(1)
    data, records = b"", 0
    head = struct.pack("=II", 0, RECORD.size)
    padding = bytes(-RECORD.size % 8)
    while len(data) < BATCH_BYTES:
        comm = b"worker-%d" % dice.randrange(200)
        ids = [dice.getrandbits(64) for _ in range(4)]
        numbers = [dice.randrange(1 << 22), dice.randrange(1 << 22), dice.randrange(64), dice.randrange(8)]
        record = (records * 1000, 1, 0, *ids, dice.randrange(10**9), *numbers, dice.randrange(2), comm)
        data += head + RECORD.pack(*record) + padding
        records += 1
    return Batch(memoryview(data), records)


class Native:
    """The encoder in C, up to the request that is sent."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._resource = resource_message(kernel_resource().attributes)
        self._scope = scope_message(SCOPE_NAME, "1")
        self._pipeline = NativePipeline([[layout(columns)]], self._put)
        self.consume = self._pipeline.consume

    def _put(self, chunks: Sequence[Any]) -> None:
        for chunk in chunks:
            request_message(self._scope, [(self._resource, [chunk.payload])])


class Python:
    """Spans in Python, and a function that makes bytes, or whatever, of them."""

    def __init__(self, columns: Sequence[Column], use: Callable[[Sequence[KernelSpan]], Any]) -> None:
        self._pipeline = SdkPipeline([[layout(columns)]], use)
        self.consume = self._pipeline.consume


def sdk_spans() -> Callable[[Sequence[KernelSpan]], Any]:
    """Return what makes the spans that an exporter of the SDK takes."""
    build = SpanBuilder(kernel_resource())
    return lambda spans: [build(span) for span in spans]


def sdk_bytes() -> Callable[[Sequence[KernelSpan]], Any]:
    """Return what the SDK's OTLP exporters do before they send."""
    build = SpanBuilder(kernel_resource())
    return lambda spans: sdk_encode([build(span) for span in spans]).SerializeToString()


def rate(way: Native | Python, found: Batch, clock: Clock, times: int) -> Callable[[], float]:
    """Return what measures spans a second of CPU time."""

    def measure() -> float:
        start = time.thread_time_ns()
        for _ in range(times):
            way.consume(found, clock)
        return found.records * times * 1e9 / (time.thread_time_ns() - start)

    measure()
    return measure


def main() -> None:
    quick = arguments(__doc__).quick
    on_one_cpu()
    say(machine())
    found, clock = batch(), Clock()
    ways: dict[str, tuple[Native | Python, int, int | None]] = {
        "native": (Native(SIX), 20, 500_000),
        "native_decoders": (Native(ASKING), 20, None),
        "python": (Python(SIX, encode_spans), 1, None),
        "sdk": (Python(SIX, sdk_spans()), 1, 30_000),
        "sdk_encoded": (Python(SIX, sdk_bytes()), 1, None),
    }
    measures = [rate(way, found, clock, times) for way, times, _ in ways.values()]
    results = dict(zip(ways, interleaved(measures, 3 if quick else 40), strict=True))
    for name, rates in results.items():
        target = ways[name][2]
        report(name, rates, "spans/s", **({"target": target} if target else {}))
    ratios = [native / sdk for native, sdk in zip(results["native"], results["sdk_encoded"], strict=True)]
    report("native_over_sdk_encoded", ratios, "ratio", baseline="sdk_encoded")
    report("peak_memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")


if __name__ == "__main__":
    main()
