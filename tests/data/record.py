# SPDX-License-Identifier: Apache-2.0
"""Records the records: what a kernel really submitted, for tests/unit/test_spans_plan.py.

Run it as root, in a source tree that is built, whenever the C struct of a record has changed:

    python tests/data/record.py

For each program it writes PROGRAM.bin, the batch as the reader hands it on, and PROGRAM.json, what this script knows
about it from elsewhere: what it ran, where the records lie, and the ids that it published.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path

from opentelemetry import trace

import ebpftrace
from ebpftrace.spans import pipeline

HERE = Path(__file__).parent
TRACE_ID, SPAN_ID = 0x0102030405060708090A0B0C0D0E0F10, 0x1112131415161718
KINDS = 6  # records of each type that are kept


def kept(batches, ring):
    """The first few records of each type of one ring, as bytes, and their places."""
    data, places, seen = b"", [], {}
    for batch in batches:
        for where, record in batch:
            kind = int.from_bytes(record[8:12], "little")
            if where == ring and seen.setdefault(kind, 0) < KINDS:
                seen[kind] += 1
                places.append((len(data), len(record)))
                data += record + bytes(-len(record) % 8)
    return data, places


def work():
    """One of everything that makes a record."""
    facts = {"pid": os.getpid(), "tid": threading.get_native_id()}
    context = trace.SpanContext(TRACE_ID, SPAN_ID, False, trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)), ebpftrace.enable():
        facts["began_ns"] = time.time_ns()
        time.sleep(0.02)
        subprocess.run(["true", "an argument", "caf\u00e9"], check=True)
        subprocess.run(["sh", "-c", "kill -9 $$"], check=False)
        subprocess.run(["sh", "-c", "exec env sh -c 'exit 3'"], check=False)
        facts["ended_ns"] = time.time_ns()
    return facts


def main():
    """Write the files."""
    batches, consume = [], pipeline.SdkPipeline.consume

    def keep(self, batch, clock):
        batches.append([(ring, bytes(batch.data[offset : offset + size])) for ring, offset, size in batch])
        consume(self, batch, clock)

    pipeline.SdkPipeline.consume = keep
    os.environ["OTEL_TRACES_EXPORTER"] = "none"
    with ebpftrace.start() as session:
        if not session.active:
            raise SystemExit(session.reason)
        facts = work() | {"offset_ns": session._reader._clock.offset_ns}
        session.flush()
        programs = [program.name for program in session._kernel.programs]
    for ring, program in enumerate(programs):
        data, places = kept(batches, ring)
        (HERE / f"{program}.bin").write_bytes(data)
        (HERE / f"{program}.json").write_text(json.dumps({**facts, "places": places}, indent=1) + "\n")
        print(f"{program}: {len(places)} records, {len(data)} bytes")


if __name__ == "__main__":
    main()
