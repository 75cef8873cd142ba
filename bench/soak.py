# SPDX-License-Identifier: Apache-2.0
"""Does anything grow? Threads, tasks and forks come and go for ten minutes, with a traced span each.

What the process holds is looked at when caches are warm, half-way and at the end: memory, BPF objects, descriptors,
threads, slots of the context table. Growth, an error, or a thread without a slot is the exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _harness import machine, report, say, session
from _service import Nowhere
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import ebpftrace
from ebpftrace.context import _publisher

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from ebpftrace.runtime.session import Session

_SLOT = struct.Struct("32xI28x")  # struct ebt_slot: the owner's thread id
_NOBODY = (0, 0xFFFFFFFF)
_WARM = 0.2  # of the time
_FORK_EVERY_S = 5
_MORE_MIB, _MORE = 3.0, 1.03  # memory at the end, above that half-way: what malloc may keep


def threads(tracer: Tracer) -> int:
    """A few threads at a time, each with a span."""

    def work() -> None:
        with tracer.start_as_current_span("thread"):
            time.sleep(0.001)

    started = [threading.Thread(target=work) for _ in range(20)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(40):
            pool.submit(work)
    return 60


def tasks(tracer: Tracer) -> int:
    """An event loop of its own, and tasks that take turns on it."""

    async def work() -> None:
        with tracer.start_as_current_span("task"):
            await asyncio.sleep(0.001)
            time.sleep(0.0002)  # noqa: ASYNC251  (something that the kernel sees)
            with tracer.start_as_current_span("inner"):
                await asyncio.to_thread(time.sleep, 0.001)

    async def together() -> None:
        await asyncio.gather(*(work() for _ in range(50)))

    asyncio.run(together())
    return 100


def forks(tracer: Tracer) -> int:
    """Children: one ends at once, one has the library start again and end in order."""
    for traced in (False, True):
        pid = os.fork()
        if pid == 0:
            with tracer.start_as_current_span("child"):
                pass
            deadline = time.monotonic() + 20 * traced
            while time.monotonic() < deadline and not ebpftrace.stats()["active"]:
                time.sleep(0.01)
            ebpftrace.stop()
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            sys.exit("a child did not end in order")
    return 2


def held(running: Session) -> dict[str, float]:
    """What this process holds now."""
    descriptors = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with mmap(running._kernel.slots.fd, _SLOT.size * _publisher.TABLE_SLOTS, MAP_SHARED, PROT_READ) as table:  # type: ignore[union-attr]
        owners = [tid for (tid,) in _SLOT.iter_unpack(bytes(table))]
    return {
        "memory": resident / (1 << 20),
        "maps": sum(name.startswith("anon_inode:bpf-map") for name in descriptors),
        "programs": sum(name.startswith("anon_inode:bpf-prog") for name in descriptors),
        "descriptors": len(descriptors),
        "threads": threading.active_count(),
        "slots": sum(tid not in _NOBODY for tid in owners),
    }


def settled(running: Session, provider: TracerProvider) -> dict[str, float]:
    """The same when what ends has ended: threads give their slots back a moment after join()."""
    provider.force_flush()
    time.sleep(0.5)
    return held(running)


def churn(tracer: Tracer, seconds: float) -> tuple[int, int]:
    """Do everything in turns for so long, forks as seldom as they are slow; return how many spans and forks."""
    deadline, spans, forked, fork_at = time.monotonic() + seconds, 0, 0, 0.0
    while time.monotonic() < deadline:
        spans += threads(tracer) + tasks(tracer)
        if time.monotonic() >= fork_at:
            forked += forks(tracer)
            fork_at = time.monotonic() + _FORK_EVERY_S
    return spans, forked


def verdict(looks: dict[str, dict[str, float]], found: dict[str, Any]) -> list[str]:
    """What grew, or was lost."""
    start, middle, end = looks.values()
    grown = [name for name in start if name != "memory" and end[name] > start[name]]
    if end["memory"] > middle["memory"] * _MORE + _MORE_MIB:
        grown.append("memory")
    lost = found["publisher"] | {
        "reader errors": found["reader"]["errors"],
        "span errors": found["breakdown"]["errors"],
    }
    return [f"{name} grew" for name in grown] + [f"{name}: {count}" for name, count in lost.items() if count]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: does it run at all?")
    parser.add_argument("--seconds", type=float, default=600)
    given = parser.parse_args()
    seconds = 20 if given.quick else given.seconds
    say(machine())
    running = session(enable=("sched",))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    tracer = provider.get_tracer("soak")
    made, forked, looks = 0, 0, {}
    for name, share in (("start", _WARM), ("middle", (1 - _WARM) / 2), ("end", (1 - _WARM) / 2)):
        spans, children = churn(tracer, seconds * share)
        made, forked = made + spans, forked + children
        looks[name] = settled(running, provider)
        for what, value in looks[name].items():
            report(f"{what}_{name}", value, "MiB" if what == "memory" else what)
    found = running.stats()
    report("spans_made", made, "spans")
    report("forks", forked, "forks")
    report("spans_emitted", found["spans"]["emitted"], "spans")
    ebpftrace.stop()
    problems = verdict(looks, found)
    say(f"{found}")
    if problems:
        sys.exit("; ".join(problems))


if __name__ == "__main__":
    main()
