# SPDX-License-Identifier: Apache-2.0
"""What publishing the current span costs an application, against the same application without, and against a uprobe.

Attach and detach are measured below another span, where each of them has a span to publish.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import cffi
import opentelemetry.context as otel
from _harness import (
    arguments,
    compile_bpf,
    compile_library,
    cpu_ns,
    differences,
    interleaved,
    machine,
    on_one_cpu,
    report,
    say,
    session,
)
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from ebpftrace.context import _publisher
from ebpftrace.kernel.object import BpfObject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def attach_detach(context: Any) -> Callable[[int], None]:
    def run(count: int) -> None:
        attach, detach = otel.attach, otel.detach
        for _ in range(count):
            detach(attach(context))

    return run


def spans(tracer: trace.Tracer) -> Callable[[int], None]:
    def run(count: int) -> None:
        start = tracer.start_as_current_span
        for _ in range(count):
            with start("span"):
                pass

    return run


def under(runtime: Any, run: Callable[[int], None], count: int) -> Callable[[], float]:
    """Time `run` with OpenTelemetry's runtime context being `runtime`."""

    def timed() -> float:
        before, otel._RUNTIME_CONTEXT = otel._RUNTIME_CONTEXT, runtime
        try:
            return cpu_ns(run, count)
        finally:
            otel._RUNTIME_CONTEXT = before

    return timed


def calls(function: Callable[..., None]) -> Callable[[int], None]:
    trace_id, span_id = bytes(range(16)), bytes(range(8))

    def run(count: int) -> None:
        for _ in range(count):
            function(trace_id, span_id)

    return run


@contextlib.contextmanager
def functions() -> Iterator[Any]:
    """Yield a C library with a function that has a uprobe on it and one that has none."""
    ffi = cffi.FFI()
    for name in ("probed", "unprobed"):
        ffi.cdef(f"void {name}(const unsigned char *trace_id, const unsigned char *span_id);")
    with tempfile.TemporaryDirectory() as directory:
        path = compile_library("probed.c", directory)
        with BpfObject("uprobe", compile_bpf("uprobe.bpf.c", f'PROBED="{path}"')) as uprobe:
            # maps of the header that this program does not use
            for name in ("events", "drops", "processes", "publishers", "lines", "slots", "thread_lines"):
                uprobe.skip_map(name)
            uprobe.load()
            uprobe.attach()
            yield ffi.dlopen(path)
            if not any(True for _ in uprobe.map("contexts")):
                sys.exit("the uprobe was never hit")


def measure(plain: trace.Tracer, ours: trace.Tracer, library: Any, rounds: int) -> None:
    """Time everything in turns and report it."""
    with_us = otel._RUNTIME_CONTEXT
    without = with_us.inner
    with ours.start_as_current_span("parent"):
        switch = attach_detach(trace.set_span_in_context(ours.start_span("child")))
        probed, unprobed = calls(library.probed), calls(library.unprobed)
        variants = {
            "bare": under(without, switch, 2000),
            "published": under(with_us, switch, 2000),
            "unprobed": lambda: cpu_ns(unprobed, 2000),
            "probed": lambda: cpu_ns(probed, 500),
            "sdk": under(without, spans(plain), 100),
            "sdk_published": under(with_us, spans(plain), 100),
            "sdk_measured": under(with_us, spans(ours), 100),
        }
        results = interleaved(list(variants.values()), rounds)
    report_all(dict(zip(variants, results, strict=True)))


def report_all(results: dict[str, list[float]]) -> None:
    added = differences(results["published"], results["bare"])
    report("attach_detach_without", results["bare"], "ns")
    report("attach_detach_with", results["published"], "ns")
    publish_ns = report("attach_detach_added", added, "ns", baseline="attach_detach_without", target=150)
    report("uprobe_call_without", results["unprobed"], "ns")
    cost = differences(results["probed"], results["unprobed"])
    uprobe_ns = report("uprobe_call_added", cost, "ns", baseline="uprobe_call_without")
    report("uprobe_call_to_attach_detach", uprobe_ns / publish_ns, "ratio", baseline="attach_detach_added", target=40)
    report("sdk_span_without", results["sdk"], "ns")
    for name in ("published", "measured"):
        more = differences(results[f"sdk_{name}"], results["sdk"])
        report(f"sdk_span_{name}_added", more, "ns", baseline="sdk_span_without")


def main() -> None:
    rounds = 20 if arguments(__doc__).quick else 1000
    say(machine())
    on_one_cpu()
    plain = TracerProvider().get_tracer("plain")  # asked for before start(), so it stays as the SDK makes it
    with session() as running, functions() as library:
        ours = TracerProvider().get_tracer("ours")
        measure(plain, ours, library, rounds)
        say(json.dumps({"publisher": _publisher.counters(), "breakdown": running.stats()["breakdown"]}))


if __name__ == "__main__":
    main()
