# SPDX-License-Identifier: Apache-2.0
"""A connection whose every phase shows what the kernel did with its socket: `python demos/sock/demo.py`, as root.

`--ipv6` does it over IPv6; `--output FILE` says where the trace goes, which `ebpftrace show FILE` displays.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

import ebpftrace


def serve(listener: socket.socket, connections: int) -> None:
    """Be the server: read a request, think, answer."""
    for _ in range(connections):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            time.sleep(0.02)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 20_000)


def connect(address: tuple[str, int], family: socket.AddressFamily, *, traced: bool) -> None:
    """Be the client: each phase in a span of its own, which the socket is tied to if it is traced."""
    tracer = trace.get_tracer("demo")
    sock = socket.socket(family)

    def tie() -> None:
        if traced:
            ebpftrace.trace_socket(sock)

    with tracer.start_as_current_span("dial"):
        tie()
        sock.connect(address)
    with tracer.start_as_current_span("write"):
        tie()
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
    with tracer.start_as_current_span("read"):
        tie()
        while sock.recv(65536):
            pass
    with tracer.start_as_current_span("close"):
        tie()
        sock.close()


def main() -> int:
    """Make a traced connection, then the same untraced; returns 3 when this machine cannot trace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", metavar="FILE", default="sock.jsonl")
    parser.add_argument("--ipv6", action="store_true")
    options = parser.parse_args()

    # the program "sched" for the time breakdown of each phase; its own spans are not enabled
    if not ebpftrace.start(programs=["sched", "sock"], output=options.output).active:
        return 3
    trace.set_tracer_provider(TracerProvider(resource=Resource.create({"service.name": "sock-demo"})))
    tracer = trace.get_tracer("demo")
    family = socket.AF_INET6 if options.ipv6 else socket.AF_INET
    with socket.create_server(("::1" if options.ipv6 else "127.0.0.1", 0), family=family) as listener:
        server = threading.Thread(target=serve, args=(listener, 2))
        server.start()
        address = listener.getsockname()[:2]
        with tracer.start_as_current_span("two connections"):
            with tracer.start_as_current_span("traced connection"):
                connect(address, family, traced=True)
            with tracer.start_as_current_span("untraced connection"):
                connect(address, family, traced=False)
        server.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
