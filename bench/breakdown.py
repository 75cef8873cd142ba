# SPDX-License-Identifier: Apache-2.0
"""What the always-on breakdown costs a service: a Flask application, instrumented, two spans a request.

In process, one request after the other, by CPU time; and behind a WSGI server on loopback that four keep-alive
connections keep busy, by throughput and by the server's CPU time for a request. Off, loaded (programs in the kernel
and contexts published, no breakdown) and on take turns within each server process.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import opentelemetry.context as otel
from _harness import HERE, arguments, cpu_ns, differences, interleaved, machine, no_gc, report, say, session
from _service import make_app, request

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST = b"GET /prices HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\n\r\n"
CONNECTIONS = 4
MODES = ("off", "loaded", "on")


def measure_in_process(rounds: int) -> None:
    """Report the CPU time of a request in this process."""
    plain = request(make_app())
    with session():
        ours = request(make_app())
        with_us = otel._RUNTIME_CONTEXT
        without = with_us.inner

        def off() -> float:
            otel._RUNTIME_CONTEXT = without
            try:
                return cpu_ns(plain, 9)
            finally:
                otel._RUNTIME_CONTEXT = with_us

        off_ns, on_ns = interleaved([off, lambda: cpu_ns(ours, 9)], rounds)
    report("wsgi_request_off", [ns / 1000 for ns in off_ns], "µs")
    report("wsgi_request_on_added", [ns / 1000 for ns in differences(on_ns, off_ns)], "µs", baseline="wsgi_request_off")
    ratios = [100 * (on / off - 1) for on, off in zip(on_ns, off_ns, strict=True)]
    report("wsgi_request_on_overhead", ratios, "%", baseline="wsgi_request_off", target=1)


@dataclass
class Waiting:
    """What one connection still has to receive of an answer, in bytes."""

    left: int


def answer_size(connection: socket.socket) -> int:
    """Ask once and return the length of the whole answer; all answers are alike."""
    connection.sendall(REQUEST)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head = answer.partition(b"\r\n\r\n")[0]
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    if not head.startswith(b"HTTP/1.1 200"):
        sys.exit(f"the service answered {head!r}")
    size = len(head) + 4 + length
    while len(answer) < size:
        answer += connection.recv(65536)
    return size


class Server:
    """A service in a process of its own, and the connections to it."""

    def __init__(self, cpu: int) -> None:
        command = [sys.executable, str(HERE / "_service.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(self._process.pid, {cpu})
        port = int(self._answer())
        self._selector = selectors.DefaultSelector()
        for _ in range(CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.size = answer_size(connection)
            self._selector.register(connection, selectors.EVENT_READ, Waiting(self.size))
            connection.sendall(REQUEST)

    def _answer(self) -> str:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            sys.exit("the service ended")
        return line

    def order(self, word: str) -> int:
        """Have the service do something; return its CPU time in ns."""
        print(word, file=self._process.stdin, flush=True)
        return int(self._answer())

    def serve(self, seconds: float) -> tuple[float, float]:
        """Keep the service busy; return requests per second and its CPU time for one, in µs."""
        cpu, start, done = self.order("cpu"), time.perf_counter(), 0
        deadline = start + seconds
        while time.perf_counter() < deadline:
            done += self._pass_round()
        elapsed = time.perf_counter() - start
        return done / elapsed, (self.order("cpu") - cpu) / done / 1000

    def _pass_round(self) -> int:
        done = 0
        for key, _ in self._selector.select(5):
            connection: Any = key.fileobj
            key.data.left -= len(connection.recv(65536))
            if key.data.left == 0:
                key.data.left = self.size
                connection.sendall(REQUEST)
                done += 1
        return done

    def close(self) -> None:
        """End the service."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(10)


@contextlib.contextmanager
def service(cpu: int) -> Iterator[Server]:
    server = Server(cpu)
    try:
        yield server
    finally:
        server.close()


def measure_service(processes: int, turns: int, seconds: float) -> None:
    """Report throughput and CPU time of the service."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cpus[:-1]) or set(cpus))
    speeds: dict[str, list[float]] = {mode: [] for mode in MODES}
    costs: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(processes):
        with service(cpus[-1]) as server, no_gc():
            server.serve(seconds)  # imports, caches
            for turn in range(turns):
                for place in range(len(MODES)):
                    mode = MODES[(place + turn) % len(MODES)]
                    server.order(mode)
                    server.serve(seconds / 10)
                    speed, cost = server.serve(seconds)
                    speeds[mode].append(speed)
                    costs[mode].append(cost)
    report("http_throughput_off", speeds["off"], "requests/s")
    report("http_cpu_off", costs["off"], "µs")
    for mode in MODES[1:]:
        lost = [100 * (1 - one / off) for one, off in zip(speeds[mode], speeds["off"], strict=True)]
        more = [100 * (one / off - 1) for one, off in zip(costs[mode], costs["off"], strict=True)]
        report(f"http_throughput_{mode}_lost", lost, "%", baseline="http_throughput_off", target=1)
        report(f"http_cpu_{mode}_added", more, "%", baseline="http_cpu_off", target=1)


def main() -> None:
    quick = arguments(__doc__).quick
    say(machine())
    measure_in_process(30 if quick else 1500)
    if quick:
        measure_service(1, 3, 0.05)
    else:
        measure_service(3, 70, 0.05)


if __name__ == "__main__":
    main()
