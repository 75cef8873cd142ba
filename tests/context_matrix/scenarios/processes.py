# SPDX-License-Identifier: Apache-2.0
"""Other processes: multiprocessing in its three ways, os.fork() in a thread, commands."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import traceback

import oracle
from oracle import check, span

from scenarios import Collector, Scenario
from scenarios.plain import levels

SCENARIOS = scenario = Collector()


def _checked(start):
    """What a child process does: start, check, report."""
    start()
    for _ in range(5):
        levels(3)
    threads = [threading.Thread(target=levels, args=(2,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return oracle.oracle().verdict()


def worker(number):
    """A task of a pool; the first of a process starts the library."""
    if oracle._oracle is None or oracle._oracle.pid != os.getpid():
        oracle.start()
    with span(f"task {number}"):
        levels(3)
    return oracle.oracle().verdict()


def worker_by_itself(number):
    """The same in a forked process where the library starts again by itself."""
    if oracle._oracle.pid != os.getpid():
        oracle.watch_restarted()
    return worker(number)


def _pool(method, task):
    with span("asks"), multiprocessing.get_context(method).Pool(2) as pool:
        for verdict in pool.imap_unordered(task, range(8)):
            oracle.oracle().add(verdict)
            check()
        pool.close()
        pool.join()
    check()


def _by(method, task):
    return lambda: _pool(method, task)


SCENARIOS += [
    Scenario("multiprocessing", "fork", _by("fork", worker)),
    Scenario("multiprocessing", "fork, started by itself", _by("fork", worker_by_itself)),
    Scenario("multiprocessing", "spawn", _by("spawn", worker)),
    Scenario("multiprocessing", "forkserver", _by("forkserver", worker)),
]


def _fork(start):
    """Fork, have the child check, and take its verdict in."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(ours)
            with open(theirs, "w") as file:  # noqa: PTH123  (a descriptor)
                json.dump(_checked(start), file)
            code = 0
        except BaseException:  # noqa: BLE001  (a forked child must not go on as its parent)
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(theirs)
    with open(ours) as file:  # noqa: PTH123
        text = file.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise AssertionError(f"the forked child ended with {status}")
    oracle.oracle().add(json.loads(text))
    check()


def _start_and_check():
    """The span that was current at the fork is current in the child too, from start() on."""
    oracle.start()
    check()


@scenario("os.fork", quick=True)
def in_a_span():
    with span("forks"):
        _fork(_start_and_check)
        check()
    check()


@scenario("os.fork", quick=True)
def in_a_thread():
    def work():
        with span("in a thread"):
            check()
            _fork(_start_and_check)
            check()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    with span("meanwhile"):
        for thread in threads:
            thread.join()
            check()


@scenario("os.fork", quick=True, excused="what was attached before the fork is published at the child's next attach")
def started_by_itself():
    with span("forks"):
        _fork(oracle.watch_restarted)
        check()


@scenario("subprocess")
def commands():
    for _ in range(3):
        with span("runs"):
            subprocess.run(["true"], check=True)
            check()
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                process.communicate(b"x")
                check()
        check()


@scenario("subprocess")
def functions_before_exec():
    with span("runs"):
        subprocess.run(["true"], check=True, preexec_fn=_in_child)
        check()
    check()


def _in_child():
    with span("before exec"):
        pass


@scenario("subprocess")
def traced_python():
    """Another Python below a span, with a library of its own."""
    command = [
        sys.executable,
        "-c",
        "import sys, json; sys.path[:0] = json.loads(sys.argv[1])\n" + _OTHER,
        json.dumps(sys.path),
    ]
    with span("runs"):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        oracle.oracle().add(json.loads(done.stdout))
        check()


_OTHER = "import oracle, scenarios.processes as p; print(json.dumps(p._checked(oracle.start)))"
