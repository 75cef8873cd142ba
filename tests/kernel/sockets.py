# SPDX-License-Identifier: Apache-2.0
"""Peers for the sockets that the tests trace, and networks that lose packets."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time

from harness import below, named

NETWORK = ("unshare", "--net")
"""Prefix of a process with a network of its own, in which nothing is up yet."""


class Peer:
    """A TCP server in a thread, for one connection after the other.

    Args:
        serve: called with each connection; it is closed afterwards.
        family: of the address to listen on.
        buffer: bytes of its receive buffer; 0 = the kernel's choice.
    """

    def __init__(self, serve, *, family=socket.AF_INET, buffer=0):
        self._listener = socket.socket(family)
        if buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self._listener.listen()
        self.address = self._listener.getsockname()
        self._serve = serve
        self._thread = threading.Thread(target=self._run, name="peer", daemon=True)

    def _run(self):
        with contextlib.suppress(OSError):  # the listener was shut down
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    self._serve(connection)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()


def answer(connection):
    """Read once, think, answer."""
    connection.recv(100)
    time.sleep(0.01)
    connection.sendall(b"x" * 1000)


def command(*words):
    """Run a command and return what it wrote."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def blackhole():
    """Make 10.9.9.2 a neighbour that never answers, in this network."""
    command("ip", "link", "add", "hole0", "type", "veth", "peer", "name", "hole1")
    command("ip", "address", "add", "10.9.9.1/24", "dev", "hole0")
    command("ip", "link", "set", "hole0", "up")
    command("ip", "link", "set", "hole1", "up")
    command("ip", "neighbour", "add", "10.9.9.2", "lladdr", "02:00:00:00:00:09", "dev", "hole0")


def narrow():
    """Bring up a loopback that is slow and has little room, in this network: so packets wait, and are dropped."""
    command("ip", "link", "set", "lo", "mtu", "1500", "up")
    command("tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "2mbit", "burst", "3kb", "limit", "6kb")


def names(spans, parent):
    """Names of the kernel's spans below the one that is called `parent`."""
    return {span["name"] for span in below(spans, named(spans, parent))}


def found(spans, name):
    """The kernel's spans of that name, in their order."""
    return sorted((span for span in spans if span["name"] == name), key=lambda span: span["start"])


def states(spans):
    """The states that a connection went through."""
    changes = [span["attributes"] for span in found(spans, "tcp_state")]
    return [(each["ebpftrace.sock.state.old"], each["ebpftrace.sock.state.new"]) for each in changes]
