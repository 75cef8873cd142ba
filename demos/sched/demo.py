# SPDX-License-Identifier: Apache-2.0
"""A traced and an untraced sleep of 123 ms: `python demos/sched/demo.py && ebpftrace show sched.jsonl`, as root."""

from __future__ import annotations

import argparse
import sys
import time

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

import ebpftrace

SECONDS = 0.123


def main() -> int:
    """Sleep twice; returns 3 when this machine cannot trace, which `start()` has logged."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", metavar="FILE", default="sched.jsonl")

    if not ebpftrace.start(programs=["sched"], output=arguments.parse_args().output).active:
        return 3
    trace.set_tracer_provider(TracerProvider(resource=Resource.create({"service.name": "sched-demo"})))
    tracer = trace.get_tracer("demo")

    with tracer.start_as_current_span("lifetime"):
        with tracer.start_as_current_span("traced sleep"), ebpftrace.enable("sched"):
            time.sleep(SECONDS)
        with tracer.start_as_current_span("untraced sleep"):
            time.sleep(SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
