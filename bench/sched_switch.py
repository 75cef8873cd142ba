# SPDX-License-Identifier: Apache-2.0
"""What the scheduler's programs cost per context switch, by the kernel's own account (kernel.bpf_stats_enabled).

Two threads pass a byte to and fro over pipes on one CPU, so that nearly all context switches of the machine are
theirs: threads that publish nothing, threads that publish (breakdown only), threads with the program enabled. An empty
program on the same tracepoint shows how much of each figure is the measuring itself.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cffi
import opentelemetry.context as otel
from _harness import arguments, compile_bpf, compile_library, machine, on_one_cpu, report, say, session
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import ebpftrace
from ebpftrace.kernel._native import lib
from ebpftrace.kernel.object import BpfObject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
PROGRAMS = ("sched_switch", "sched_waking", "sched_wakeup")
FAR_MORE = 0.8  # of all switches that must be the game's own


class Meter:
    """Reads how often and how long programs ran."""

    def __init__(self, sched: BpfObject, empty: BpfObject) -> None:
        self._fds = {name: lib.bpf_program__fd(sched._program(name)) for name in PROGRAMS}
        self._fds["empty"] = lib.bpf_program__fd(empty._program("empty"))

    def read(self) -> dict[str, tuple[int, int]]:
        """Return (ns, runs) of each program since it was loaded."""
        found = {}
        for name, fd in self._fds.items():
            fields = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
            found[name] = int(fields["run_time_ns"]), int(fields["run_cnt"])
        return found


@contextlib.contextmanager
def run_times() -> Iterator[None]:
    """Have the kernel measure BPF programs."""
    before = STATS.read_text()
    STATS.write_text("1")
    try:
        yield
    finally:
        STATS.write_text(before)


def game(library: Any, balls: int, each: Callable[[], Any]) -> None:
    """Play with two threads of this process, each inside what `each` returns."""
    here, there = os.pipe(), os.pipe()

    def side(source: int, sink: int) -> None:
        with each():
            library.play(source, sink, balls)

    threads = [threading.Thread(target=side, args=pair) for pair in ((here[0], there[1]), (there[0], here[1]))]
    for thread in threads:
        thread.start()
    os.write(here[1], b"o")
    for thread in threads:
        thread.join()
    for fd in (*here, *there):
        os.close(fd)


def strangers(path: str, balls: int) -> None:
    """Play in a process that knows nothing of the library."""
    done = subprocess.run([sys.executable, __file__, "play", path, str(balls)], check=False)
    if done.returncode:
        sys.exit("the untraced threads failed")


def play_as_stranger(path: str, balls: int) -> None:
    library = load(path)
    game(library, balls, contextlib.nullcontext)


def load(path: str) -> Any:
    ffi = cffi.FFI()
    ffi.cdef("int play(int from, int to, int balls);")
    return ffi.dlopen(path)


def measure(meter: Meter, run: Callable[[], None], balls: int) -> dict[str, float] | None:
    """Return ns per run of each program, and `all` per switch; None when others switched too much meanwhile."""
    before = meter.read()
    run()
    after = meter.read()
    spent = {name: after[name][0] - before[name][0] for name in after}
    runs = {name: after[name][1] - before[name][1] for name in after}
    if runs["sched_switch"] * FAR_MORE > 2 * balls:
        return None
    figures = {name: spent[name] / runs[name] for name in after if runs[name]}
    figures["all"] = sum(spent[name] for name in PROGRAMS) / runs["sched_switch"]
    return figures


def report_kind(kind: str, rounds: list[dict[str, float]], **more: Any) -> None:
    switch = [figures["sched_switch"] for figures in rounds]
    report(f"{kind}_sched_switch", switch, "ns", baseline="empty_sched_switch", **more)
    net = [figures["sched_switch"] - figures["empty"] for figures in rounds]
    report(f"{kind}_sched_switch_above_empty", net, "ns", baseline="empty_sched_switch")
    report(f"{kind}_all_programs_per_switch", [figures["all"] for figures in rounds], "ns")


def measure_all(running: Any, path: str, rounds: int, balls: int) -> dict[str, list[dict[str, float]]]:
    """Measure all kinds of threads in turns."""
    library = load(path)
    tracer = TracerProvider().get_tracer("bench")
    span = tracer.start_span("game")

    @contextlib.contextmanager
    def published() -> Iterator[None]:
        token = otel.attach(trace.set_span_in_context(span))
        yield
        otel.detach(token)

    @contextlib.contextmanager
    def enabled() -> Iterator[None]:
        with published(), ebpftrace.enable("sched"):
            yield

    kinds = {
        "untraced": lambda: strangers(path, balls),
        "published": lambda: game(library, balls, published),
        "enabled": lambda: game(library, balls, enabled),
    }
    sched = next(program.object for program in running._kernel.programs if program.name == "sched")
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with BpfObject("empty", compile_bpf("empty.bpf.c")) as empty:
        for unused in ("events", "drops", "processes", "publishers", "lines", "slots", "thread_lines"):
            empty.skip_map(unused)
        empty.load()
        empty.attach()
        meter = Meter(sched, empty)
        for _ in range(rounds):
            for kind, run in kinds.items():
                figures = measure(meter, run, balls)
                if figures is not None:
                    found[kind].append(figures)
                running.flush(5)
    return found


def main() -> None:
    rounds, balls = (2, 5000) if arguments(__doc__).quick else (20, 40_000)
    say(machine())
    on_one_cpu()
    with tempfile.TemporaryDirectory() as directory, run_times():
        path = compile_library("pingpong.c", directory)
        # a ring that holds a whole game, so that the cost of a full one is not in the figures
        with session(programs=("sched",), ring_kib=1 << 16) as running:
            found = measure_all(running, path, rounds, balls)
            dropped = running.stats()["programs"]["sched"]["dropped"]
            if any(dropped.values()):
                sys.exit(f"records were lost, the figures would mislead: {dropped}")
    report("empty_sched_switch", [figures["empty"] for figures in found["untraced"]], "ns")
    report_kind("untraced", found["untraced"], target=60)
    report_kind("published", found["published"])
    report_kind("enabled", found["enabled"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["play"]:
        play_as_stranger(sys.argv[2], int(sys.argv[3]))
    else:
        main()
