# SPDX-License-Identifier: Apache-2.0
"""A traced and an untraced second of work with 80 % of a CPU: `python demos/cfs_throttling/demo.py`, as root.

Then `ebpftrace show cfs-throttling.jsonl`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import time

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

import ebpftrace
from ebpftrace.demos.cgroup import CpuQuota
from ebpftrace.errors import UnsupportedError

PERCENT = 80
SECONDS = 1.0


def busy_loop() -> int:
    """Hash for a second; returns how often."""
    iterations, digest = 0, b""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        digest = hashlib.sha512(digest).digest()
        iterations += 1
    return iterations


def main() -> int:
    """Work twice; returns 3 when this machine cannot trace, or has no quotas."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", metavar="FILE", default="cfs-throttling.jsonl")
    output = arguments.parse_args().output
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through `with`, which removes the group

    if not ebpftrace.start(programs=["cfs-throttling", "sched"], output=output).active:
        return 3
    trace.set_tracer_provider(TracerProvider(resource=Resource.create({"service.name": "cfs-throttling-demo"})))
    tracer = trace.get_tracer("demo")

    try:
        with CpuQuota(PERCENT) as quota:
            quota.add(os.getpid())
            with tracer.start_as_current_span("work"):
                with tracer.start_as_current_span("traced busy loop") as span, ebpftrace.enable("cfs-throttling"):
                    span.set_attribute("iterations", busy_loop())
                with tracer.start_as_current_span("untraced busy loop") as span:
                    span.set_attribute("iterations", busy_loop())
    except UnsupportedError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
