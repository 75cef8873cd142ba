# SPDX-License-Identifier: Apache-2.0
"""What following the current span over switches of contexts costs: asyncio, uvloop, greenlets, and attach and detach.

Every task that takes its turn has a span of its own, so each switch has one to publish; "measured" spans have a
breakdown besides. The same work runs with the hooks and without them, in turns; a step is what one task does between
two others, so it has two switches of contexts.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from typing import TYPE_CHECKING, Any

import greenlet
import opentelemetry.context as otel
import uvloop
from _harness import arguments, cpu_ns, differences, interleaved, machine, on_one_cpu, report, say, session
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from ebpftrace.context import hooks, switches

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 500
TARGETS = {"asyncio_step": 300, "uvloop_step": 300}


def loop_steps(tracer: trace.Tracer, loop: asyncio.AbstractEventLoop) -> Callable[[int], None]:
    """Two tasks on a loop that give way to each other."""

    async def task(count: int) -> None:
        with tracer.start_as_current_span("task"):
            for _ in range(count):
                await asyncio.sleep(0)

    async def both(count: int) -> None:
        await asyncio.gather(task(count // 2), task(count // 2))

    return lambda count: loop.run_until_complete(both(count))


def greenlet_switches(tracer: trace.Tracer) -> Callable[[int], None]:
    """A greenlet that the main one switches to, and that switches back."""

    def other() -> None:
        back = greenlet.getcurrent().parent.switch
        with tracer.start_as_current_span("other"):
            while True:
                back()

    partner = greenlet.greenlet(other)
    partner.gr_context = contextvars.copy_context()
    partner.switch()

    def run(count: int) -> None:
        switch = partner.switch
        for _ in range(count // 2):
            switch()

    return run


def context_runs(tracer: trace.Tracer) -> Callable[[int], None]:
    """`Context.run` of a function that does nothing."""
    inner = contextvars.Context()
    inner.run(otel.attach, trace.set_span_in_context(tracer.start_span("inner")))

    def run(count: int) -> None:
        enter = inner.run
        for _ in range(count):
            enter(nothing)

    return run


def nothing() -> None:
    pass


def attach_detach(tracer: trace.Tracer) -> Callable[[int], None]:
    context = trace.set_span_in_context(tracer.start_span("child"))

    def run(count: int) -> None:
        attach, detach = otel.attach, otel.detach
        for _ in range(count):
            detach(attach(context))

    return run


def timed(run: Callable[[int], None], hooked: bool) -> Callable[[], float]:
    def measured() -> float:
        if hooked:
            hooks.install(nothing)
        else:
            switches.leave()
        return cpu_ns(run, STEPS)

    return measured


def measure(works: dict[str, Callable[[int], None]], rounds: int) -> None:
    """Time everything in turns and report it."""
    variants = {(name, hooked): timed(run, hooked) for name, run in works.items() for hooked in (False, True)}
    results = dict(zip(variants, interleaved(list(variants.values()), rounds), strict=True))
    for name in works:
        report(f"{name}_without", results[name, False], "ns")
        more: dict[str, Any] = {"target": TARGETS[name]} if name in TARGETS else {}
        added = differences(results[name, True], results[name, False])
        report(f"{name}_added", added, "ns", baseline=f"{name}_without", **more)


def main() -> None:
    rounds = 10 if arguments(__doc__).quick else 500
    say(machine())
    on_one_cpu()
    tracer = TracerProvider().get_tracer("plain")  # asked for before start(), so it stays as the SDK makes it
    with session() as running:
        measured = TracerProvider().get_tracer("measured")
        loops = asyncio.new_event_loop(), uvloop.new_event_loop()
        with tracer.start_as_current_span("outer"):
            measure(
                {
                    "asyncio_step": loop_steps(tracer, loops[0]),
                    "asyncio_measured_step": loop_steps(measured, loops[0]),
                    "uvloop_step": loop_steps(tracer, loops[1]),
                    "uvloop_measured_step": loop_steps(measured, loops[1]),
                    "greenlet_switch": greenlet_switches(tracer),
                    "context_run": context_runs(tracer),
                    "attach_detach": attach_detach(tracer),
                },
                rounds,
            )
        hooks.install(nothing)
        say(json.dumps(running.stats()["context_hooks"]))
        for loop in loops:
            loop.close()


if __name__ == "__main__":
    main()
