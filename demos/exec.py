# SPDX-License-Identifier: Apache-2.0
"""Every program below a span is a span: `python demos/exec.py && ebpftrace show exec.jsonl`, as root."""

from __future__ import annotations

import subprocess

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import ebpftrace

ebpftrace.start(output="exec.jsonl")
trace.set_tracer_provider(TracerProvider())
tracer = trace.get_tracer("demo")

if __name__ == "__main__":
    with tracer.start_as_current_span("build"), ebpftrace.enable("exec", "sched"):
        subprocess.run(["sh", "-c", "sleep 0.05; seq 50000 | sort -R | tail -n 1 > /dev/null"], check=True)
        subprocess.run(["sh", "-c", "ls /does/not/exist 2> /dev/null"], check=False)  # its span has an error
