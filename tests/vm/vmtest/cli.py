# SPDX-License-Identifier: Apache-2.0
"""The command: kernels in, results and the page out."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vmtest import apt, image, matrix, results, selection, vm
from vmtest.errors import VmError

ROOT = Path(__file__).resolve().parents[3]
GUEST = Path(__file__).with_name("guest.py")
BUILD = ROOT / "build" / "vm"
TIMEOUT_S = 1500


def parse(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(prog="run.py", description="Run the kernel tests on other kernels.")
    parser.add_argument("kernels", nargs="*", metavar="SERIES", help="such as 6.1; default: all that apt offers")
    parser.add_argument("--page", type=Path, default=BUILD / "kernels.md", help="the matrix (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at once (%(default)s)")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="of a kernel, in seconds (%(default)s)")
    parser.add_argument("--tests", help="what pytest is given, in place of the selection; '' for none")
    parser.add_argument("--quick", action="store_true", help="one or two tests of each program, and no demos")
    parser.add_argument("--no-demos", action="store_true")
    parser.add_argument("--collect", action="store_true", help="run nothing: the matrix of all results that there are")
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error("--jobs: give 1 or more")
    if args.timeout <= 0:
        parser.error("--timeout: give seconds")
    args.kernels = [series for word in args.kernels for series in word.split()]
    return args


def main(arguments=None):
    """Run it; 0 when all passed, 1 when not, 2 when a kernel could not even be had."""
    args = parse(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if args.collect:
        return finish(results.collect(BUILD / "results"), args.page)
    try:
        vm.require_tools()
        kernels = apt.choose(args.kernels, BUILD / "apt")
        images = [image.prepare(kernel, BUILD / "kernels") for kernel in kernels]
    except VmError as error:
        print(f"test-vm: {error}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            found = list(pool.map(lambda each: run_kernel(each, args), images))
        except BaseException:
            vm.STOP.set()  # or the pool would wait for them
            raise
    return finish(found, args.page)


def run_kernel(booted, args):
    """All that is to be run on one kernel."""
    directory = BUILD / "results" / booted.series
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    words = [sys.executable, str(GUEST), str(directory), "--tests"]
    words += selection.arguments(quick=args.quick) if args.tests is None else shlex.split(args.tests)
    words += ["--demos", *([] if args.no_demos or args.quick else selection.DEMOS)]
    started = time.monotonic()
    log = Log(booted.series, directory / "output.log")
    error = ""
    try:
        code = run_guest(booted, shlex.join(words), directory, args.timeout, log)
        if code:
            error = f"kernel {booted.series}: the run in the guest ended with {code}\n{log.tail()}"
    except VmError as caught:
        running = results.last_started(log.lines)
        error = str(caught) + (f"\nwhile this ran: {running}" if running else "")
    finally:
        log.close()
    found = results.read(booted.series, booted.release, directory)
    if not error and not found.tests and args.tests != "":
        error = f"kernel {booted.series}: no tests were run, see {directory / 'output.log'}"
    found.error, found.seconds = error, time.monotonic() - started
    results.keep(found, directory)
    return found


def run_guest(booted, command, directory, timeout_s, log):
    """Run a command in a guest, once more when that did not boot or ended by itself; returns its exit code.

    Raises:
        VmError: the last one's.
    """
    started = time.monotonic()
    try:
        return vm.run(booted, command, directory, timeout_s=timeout_s, tell=log.add)
    except VmError as error:
        left = timeout_s - (time.monotonic() - started)
        if not error.again or left < vm.BOOT_S:
            raise
        log.add(f"vm: once more, for: {error}")
    console = directory / "console.log"
    if console.exists():
        console.rename(directory / "console.first.log")
    return vm.run(booted, command, directory, timeout_s=left, tell=log.add)


class Log:
    """What a guest says: all of it in a file, what matters on the screen."""

    def __init__(self, series, path):
        self.lines = []
        self._series, self._file = series, path.open("w")

    def add(self, line):
        """One more line."""
        self.lines.append(line)
        self._file.write(line + "\n")
        self._file.flush()
        if line.startswith(("vm: ", "demo ")) or " FAILED" in line or " ERROR" in line:
            print(f"{self._series:>5}  {line}", flush=True)

    def tail(self, lines=15):
        """The last of it."""
        return "\n".join(f"  | {line}" for line in self.lines[-lines:])

    def close(self):
        """That is all."""
        self._file.close()


def finish(found, page):
    """Write the page and say what came of it; returns the exit code."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(matrix.page(found))
    problems = [problem for result in found for problem in result.problems()]
    print()
    for problem in problems:
        print(problem)
    for result in found:
        counts = ", ".join(f"{result.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped"))
        print(f"kernel {result.series} ({result.release}): {counts}; {result.seconds:.0f} s")
    print(f"the matrix: {page}")
    return 1 if problems else 0
