# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: figures as JSON, paired measuring, things compiled at run time.

The machines these run on are virtual and shared, so nothing is measured against a number of another run: what is
compared runs interleaved in one process, and the figure is the median of the pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HERE = Path(__file__).parent
ROOT = HERE.parent

_CLANGS = [f"clang-{number}" for number in range(22, 14, -1)] + ["clang"]
_ARCHES = {"x86_64": "x86", "aarch64": "arm64"}
_PERCENTILES = 20  # the spread leaves out the 5 % at either end

_COLLECT_EVERY = 64  # rounds


def arguments(description: str | None) -> argparse.Namespace:
    """Read the command line that all benchmarks have."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of a minute: does it run at all?")
    return parser.parse_args()


def say(text: str) -> None:
    """Tell a person; stdout is for the figures."""
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """This machine in one line, to go with the figures."""
    model = "unknown CPU"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}"


def spread(samples: Sequence[float]) -> list[float]:
    """Return the 5th and the 95th percentile; of few samples, the smallest and the largest."""
    if len(samples) < _PERCENTILES:
        return [min(samples), max(samples)]
    cuts = statistics.quantiles(samples, n=_PERCENTILES)
    return [cuts[0], cuts[-1]]


def median_within(samples: Sequence[float]) -> list[float]:
    """Return the bounds that hold the true median with 95 % confidence, by order statistics."""
    ordered, reach = sorted(samples), 0.98 * math.sqrt(len(samples))
    middle = (len(samples) - 1) / 2
    return [ordered[max(0, math.floor(middle - reach))], ordered[min(len(samples) - 1, math.ceil(middle + reach))]]


def report(name: str, samples: float | Sequence[float], unit: str, **more: Any) -> float:
    """Print one figure and return it: the median of `samples`.

    Args:
        name: of the figure, unique in its benchmark.
        samples: of the runs, or one value that is no median.
        unit: "ns", "ratio", "%", "spans/s".
        more: further keys: `baseline` says what a ratio or a difference is against, `target` what it should be.
    """
    figure: dict[str, Any] = {"name": name, "unit": unit}
    if isinstance(samples, (int, float)):
        value = float(samples)
    else:
        value = statistics.median(samples)
        figure["samples"] = len(samples)
        figure["spread"] = [_rounded(edge) for edge in spread(samples)]
        figure["median_within"] = [_rounded(edge) for edge in median_within(samples)]
    print(json.dumps({"name": name, "value": _rounded(value), **figure, **more}, ensure_ascii=False), flush=True)
    return value


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def interleaved(variants: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Run all variants in each round, in an order that turns, and return each one's results.

    Whatever the machine does meanwhile (another load, another clock frequency) then hits them all alike, and
    differences are taken within a round.
    """
    results: list[list[float]] = [[] for _ in variants]
    with no_gc():
        for turn in range(rounds):
            for place in range(len(variants)):
                index = (place + turn) % len(variants)
                results[index].append(variants[index]())
            if turn % _COLLECT_EVERY == 0:
                gc.collect()
    return results


def differences(results: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Return what each round's result was above the baseline's."""
    return [result - base for result, base in zip(results, baseline, strict=True)]


@contextlib.contextmanager
def no_gc() -> Iterator[None]:
    """Keep collections out of what is timed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def cpu_ns(run: Callable[[int], None], count: int) -> float:
    """Return this thread's CPU time for one of `count` iterations of `run`: what else the machine runs is not in it.

    Some iterations go first: caches, and CPython's code specialised on the types that it met last, are those of a
    process that does nothing else.
    """
    run(count // 3)
    start = time.thread_time_ns()
    run(count)
    return (time.thread_time_ns() - start) / count


def on_one_cpu() -> int:
    """Keep this process, and what it starts from here on, on one CPU; return which."""
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    return cpu


def compile_bpf(source: str, *defines: str) -> bytes:
    """Compile a BPF program of this directory, as the build compiles the shipped ones; return the object."""
    clang = next((found for name in _CLANGS if (found := shutil.which(name))), None)
    if clang is None:
        sys.exit("no clang (15 or newer): apt-get install clang-19")
    multiarch = f"/usr/include/{platform.machine()}-linux-gnu"
    flags = ["-g", "-O2", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3", "-Wno-unused-parameter"]
    flags += [f"-D__TARGET_ARCH_{_ARCHES[platform.machine()]}", f"-I{ROOT}/bpf", f"-I{ROOT}/bpf/include"]
    flags.append(f"-I{ROOT}/build/libbpf/include")  # where set-up builds libbpf when the machine's is too old
    flags += ["-idirafter", multiarch, *(f"-D{define}" for define in defines)]
    return _run([clang, *flags, "-c", str(HERE / source), "-o", "-"])


def compile_library(source: str, directory: str) -> str:
    """Compile a C file of this directory into a shared object in `directory`; return its path."""
    path = Path(directory) / source.replace(".c", ".so")
    _run(["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread", str(HERE / source), "-o", str(path)])
    return str(path)


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr.decode()}")
    return done.stdout


def session(**settings: Any) -> Any:
    """Start the library, or end the benchmark with the reason why that is not possible."""
    import ebpftrace

    started = ebpftrace.start(**settings)
    if not started.active:
        sys.exit(f"the library did not start: {started.reason}")
    return started
