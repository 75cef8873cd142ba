# SPDX-License-Identifier: Apache-2.0
"""Load for a service on loopback: keep-alive connections that ask again at once, in slices of one mode each.

A service is a program of this directory. It prints its port, then takes orders on stdin, one word a line: a mode to run
in from now on, or "cpu", which changes nothing; each is answered by its CPU time in nanoseconds.
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

from _harness import HERE, no_gc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CONNECTIONS = 4

Samples = dict[str, list[float]]
"""By mode."""


@dataclass
class Service:
    """A program, and what to ask it for."""

    script: str
    path: str


@dataclass
class Waiting:
    """What one connection still has to receive of an answer, in bytes."""

    left: int


def answer_size(connection: socket.socket, request: bytes) -> int:
    """Ask once and return the length of the whole answer; all answers are alike."""
    connection.sendall(request)
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

    def __init__(self, service: Service, cpu: int) -> None:
        command = [sys.executable, str(HERE / service.script)]
        self._request = f"GET {service.path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\n\r\n".encode()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(self._process.pid, {cpu})
        port = int(self._answer())
        self._selector = selectors.DefaultSelector()
        for _ in range(CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.size = answer_size(connection, self._request)
            self._selector.register(connection, selectors.EVENT_READ, Waiting(self.size))
            connection.sendall(self._request)

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
                connection.sendall(self._request)
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
def running(service: Service, cpu: int) -> Iterator[Server]:
    server = Server(service, cpu)
    try:
        yield server
    finally:
        server.close()


def compared(
    service: Service, modes: Sequence[str], processes: int, turns: int, seconds: float
) -> tuple[Samples, Samples]:
    """Return requests per second, and CPU time of a request in µs, of slices in all modes, which take turns."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cpus[:-1]) or set(cpus))
    speeds: Samples = {mode: [] for mode in modes}
    costs: Samples = {mode: [] for mode in modes}
    for _ in range(processes):
        with running(service, cpus[-1]) as server, no_gc():
            server.serve(seconds)  # imports, caches
            for turn in range(turns):
                for place in range(len(modes)):
                    mode = modes[(place + turn) % len(modes)]
                    server.order(mode)
                    server.serve(seconds / 10)
                    speed, cost = server.serve(seconds)
                    speeds[mode].append(speed)
                    costs[mode].append(cost)
    return speeds, costs


def overhead(samples: Mapping[str, list[float]], mode: str, baseline: str) -> list[float]:
    """Return what each slice was above the baseline's of its turn, in %."""
    return [100 * (one / base - 1) for one, base in zip(samples[mode], samples[baseline], strict=True)]
