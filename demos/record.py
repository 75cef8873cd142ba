# SPDX-License-Identifier: Apache-2.0
"""Record the trace that `ebpftrace demo` shows where it cannot run: `python demos/record.py`, as root.

Of one run it keeps the slowest trace and one of usual length, without the name and id of this machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from ebpftrace.demos.http_service.run import run
from ebpftrace.viewer import build_traces, load, verdict
from ebpftrace.viewer.check import check_spans

TARGET = Path(__file__).parents[1] / "ebpftrace/demos/recorded/http_service.jsonl"
MAX_BYTES = 300_000
MACHINE = {"host.name", "host.id", "os.description"}


def keep(request: dict, trace_ids: set[str]) -> dict | None:
    """The part of an export request that belongs to the traces; None when nothing does."""
    resources = []
    for resource in request["resourceSpans"]:
        attributes = resource["resource"]["attributes"]
        resource["resource"]["attributes"] = [each for each in attributes if each["key"] not in MACHINE]
        for scope in resource["scopeSpans"]:
            scope["spans"] = [span for span in scope["spans"] if span["traceId"] in trace_ids]
        resource["scopeSpans"] = [scope for scope in resource["scopeSpans"] if scope["spans"]]
        if resource["scopeSpans"]:
            resources.append(resource)
    return {"resourceSpans": resources} if resources else None


def main() -> int:
    """Run the demo, check what it recorded, write the file."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "trace.jsonl"
        run(output, lambda heading, words: print(f"{heading:>11}  {words}"))
        spans = load(str(output)).spans
        requests = [json.loads(line) for line in output.read_text().splitlines()]
    traces = build_traces(spans)
    print(verdict(traces[0]))
    problems = check_spans(spans)
    if problems or max(traces[0].root.breakdown, key=traces[0].root.breakdown.get) != "throttled":
        print("not recorded: this run is not a good example", *problems, sep="\n", file=sys.stderr)
        return 1
    ids = {traces[0].trace_id, traces[len(traces) // 2].trace_id}
    lines = [json.dumps(part, separators=(",", ":")) for request in requests if (part := keep(request, ids))]
    text = "\n".join(lines) + "\n"
    if len(text) > MAX_BYTES:
        print(f"not recorded: {len(text):,} bytes are more than {MAX_BYTES:,}", file=sys.stderr)
        return 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text)
    print(f"{TARGET}: {len(text):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
