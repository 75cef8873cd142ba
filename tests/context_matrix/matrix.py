# SPDX-License-Identifier: Apache-2.0
"""Runs every scenario in every mode on every Python, and writes the page: `make context-matrix`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import oracle
import page
import pythons
import runner
import scenarios

import ebpftrace.settings

WHOLE = ("auto", "none")
"""Modes in which everything runs; in the others, what is quick."""


def modes():
    """All ways to set the hooks."""
    return (*WHOLE, *getattr(ebpftrace.settings, "CONTEXT_HOOKS", ()))


def _jobs(python, wanted):
    for mode in wanted:
        chosen = [each for each in scenarios.load() if mode in WHOLE or each.quick]
        for batch in runner.batches(chosen):
            yield python, mode, batch


def _run(job, program):
    python, mode, batch = job
    found = []
    for each, result in runner.run(batch, mode=mode, program=program, python=python.executable):
        absent = next((name for name in each.needs if name.replace(".", "-") in python.missing), None)
        if absent and result["status"] == "not run":
            result["reason"] = f"{absent} cannot be installed: {python.missing[absent]}"
        place = {
            "python": python.label,
            "mode": mode,
            "family": each.family,
            "name": each.name,
            "excused": each.excused,
        }
        found.append({**place, **result})
    return found


def bad(results):
    """What must not be, in words."""
    for result in results:
        where = f"Python {result['python']}, hooks {result['mode']}, {result['family']}, {result['name']}"
        if result["status"] == "failed":
            yield f"{where}: {result['reason']}\n{result['output']}"
        for name in ("wrong", "spurious", "lost"):
            if result.get(name):
                yield f"{where}: {result[name]} {name}: {result['examples']}"
        if result["mode"] == "auto" and result.get("unknown") and not result["excused"]:
            yield f"{where}: {result['unknown']} unknown: {result['examples']}"


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*", help="paths of interpreters; none: those on PATH")
    parser.add_argument("--modes", nargs="+", default=modes(), help="of the hooks")
    parser.add_argument("--folder", type=Path, default=pythons.ROOT / "build/contexts", help="for what is made")
    parser.add_argument("--page", type=Path, help="write this page")
    parser.add_argument("--keep", action="store_true", help="install nothing anew in environments that are there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    return parser.parse_args()


def main():
    """Run all; return the exit code."""
    given = _arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    program = oracle.compile_program(given.folder)
    ready, results, troubles = [], [], []
    for path in pythons.find(given.pythons):
        try:
            ready.append(pythons.prepare(path, given.folder, install=not given.keep))
        except pythons.PythonError as error:
            troubles.append(f"{path}: {error}")
            continue
        jobs = list(_jobs(ready[-1], given.modes))
        with ThreadPoolExecutor(given.jobs) as pool:
            here = [each for found in pool.map(lambda job: _run(job, program), jobs) for each in found]
        results += here
        troubles += bad(here)
        print(f"Python {ready[-1].label}: {len(here)} scenarios, {sum(1 for _ in bad(here))} troubles", flush=True)
        (given.folder / "results.json").write_text(json.dumps(results, indent=1))
        if given.page:  # what there is so far: the whole takes long
            given.page.write_text(page.page(f"{platform.release()}, {platform.machine()}", ready, results))
    print(*troubles, sep="\n")
    if not ready:
        print("no Python to run on; name some: make context-matrix PYTHONS='python3.11 python3.13'")
    return 1 if troubles or not ready else 0


if __name__ == "__main__":
    sys.exit(main())
