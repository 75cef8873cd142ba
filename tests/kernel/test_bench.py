# SPDX-License-Identifier: Apache-2.0
"""Every benchmark runs, and prints figures that a program can read."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
BENCHMARKS = sorted(path.stem for path in BENCH.glob("*.py") if not path.stem.startswith("_"))
UNITS = {"ns", "µs", "ratio", "%", "requests/s", "spans/s", "MiB", "records", "records/s", "spans", "bytes"}
UNITS |= {"maps", "programs", "descriptors", "threads", "slots", "forks"}
NEEDS = {
    "agent_throughput": ("prometheus_client", "urllib3"),
    "breakdown": ("flask", "waitress", "opentelemetry.instrumentation.flask"),
    "encode": ("opentelemetry.exporter.otlp.proto.common",),
    "soak": ("flask", "waitress", "opentelemetry.instrumentation.flask"),
    "web": ("fastapi", "uvicorn", "uvloop", "opentelemetry.instrumentation.fastapi", "flask", "waitress"),
    "switches": ("greenlet", "uvloop"),
    "reader": ("opentelemetry.exporter.otlp.proto.common",),
}


def present(module):
    """Can it be imported, its parents too?"""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module", params=BENCHMARKS)
def figures(request):
    """What one benchmark prints on stdout in its quick mode."""
    missing = [module for module in NEEDS.get(request.param, ()) if not present(module)]
    if missing:
        pytest.skip(f"bench/{request.param}.py needs {', '.join(missing)}")
    if not any(map(shutil.which, ["clang", *(f"clang-{version}" for version in range(15, 24))])):
        pytest.skip("the benchmarks compile BPF programs, and there is no clang")
    command = [sys.executable, BENCH / f"{request.param}.py", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_figures(figures):
    """Each figure has a name of its own, a finite value, and a unit; a comparison says what it is against."""
    names = [figure["name"] for figure in figures]

    assert len(set(names)) == len(names) > 0
    for figure in figures:
        assert math.isfinite(figure["value"]), figure
        assert figure["unit"] in UNITS, figure
        if figure["unit"] == "ratio" or figure["name"].endswith(("_added", "_lost", "_overhead", "_above_empty")):
            assert "baseline" in figure, figure


def test_medians(figures):
    """A median lies within its own bounds, and they within its samples."""
    for figure in figures:
        if "samples" in figure:
            low, high = figure["median_within"]
            assert low <= figure["value"] <= high, figure
            assert figure["samples"] >= 1, figure
