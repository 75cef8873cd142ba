# SPDX-License-Identifier: Apache-2.0
"""Which sockets can be tied to a span, for how long, and what becomes of those that cannot."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest
from harness import App, below, kernel, named, run
from sockets import Peer, answer, command, found, names

pytestmark = pytest.mark.program("sock")


def kinds():
    """Sockets of asyncio, http.client and ssl; and a plain descriptor."""
    import asyncio
    import http.client
    import ssl

    import ebpftrace

    app = App(programs=["sock"])

    async def stream(address):
        reader, writer = await asyncio.open_connection(*address)
        with app.span("asyncio"):
            ebpftrace.trace_socket(writer.get_extra_info("socket"))
            writer.write(b"hello")
            await reader.read()
        writer.close()
        await writer.wait_closed()

    with Peer(answer) as peer:
        asyncio.run(stream(peer.address))
        with app.span("descriptor"), socket.create_connection(peer.address) as sock:
            ebpftrace.trace_socket(sock.fileno())
            sock.sendall(b"hello")
        with app.span("http"):
            client = http.client.HTTPConnection(*peer.address)
            client.connect()
            ebpftrace.trace_socket(client.sock)
            client.request("GET", "/")
            client.close()

    def anonymous(side):
        context = ssl.SSLContext(side)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AECDH-AES256-SHA:ADH:@SECLEVEL=0")  # needs no certificate
        return context

    def secret(connection):
        with anonymous(ssl.PROTOCOL_TLS_SERVER).wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(100)

    with (
        Peer(secret) as peer,
        app.span("ssl"),
        socket.create_connection(peer.address) as sock,
        anonymous(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(sock) as wrapped,
    ):
        ebpftrace.trace_socket(wrapped)
        wrapped.sendall(b"hello")
    return app.spans()


@pytest.mark.parametrize("kind", ["asyncio", "descriptor", "http", "ssl"])
def test_kinds(kind):
    """Whatever the application has its socket in, it can be tied."""
    spans = run(kinds).value

    assert "sock_send" in names(spans, kind)


def unsampled():
    """A socket that is tied in a sampled span, then in one that is not; then in none."""
    from opentelemetry.trace import NonRecordingSpan, SpanContext, use_span

    import ebpftrace

    app = App(programs=["sock"])
    off = NonRecordingSpan(SpanContext(1, 2, is_remote=False))
    with socket.socket(type=socket.SOCK_DGRAM) as peer, socket.socket(type=socket.SOCK_DGRAM) as sock:
        peer.bind(("127.0.0.1", 0))
        sock.connect(peer.getsockname())
        with app.span("sampled") as span:
            ebpftrace.trace_socket(sock)
            sock.send(b"1")
        with use_span(off):
            ebpftrace.trace_socket(sock)
            sock.send(b"22")
        ebpftrace.trace_socket(sock, span=span)
        sock.send(b"333")
        ebpftrace.trace_socket(sock)
        sock.send(b"4444")
    return {"spans": app.spans(), "sockets": ebpftrace.stats()["sockets"]}


def test_released():
    """A span that is not sampled, or none, has no kernel spans, and those before it have none any more."""
    value = run(unsampled).value

    lengths = [span["attributes"]["ebpftrace.sock.bytes"] for span in found(value["spans"], "sock_send")]
    assert [1, 3] == lengths
    assert {"tied": 2, "released": 2} == value["sockets"]


def read_while_released():
    """A datagram that comes while the socket is tied and is read while it is not; then another one."""
    import ebpftrace

    app = App(programs=["sock"])
    with socket.socket(type=socket.SOCK_DGRAM) as peer, socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with app.span("first"):
            ebpftrace.trace_socket(sock)
            peer.sendto(b"1", sock.getsockname())
        ebpftrace.trace_socket(sock)
        sock.recv(100)
        time.sleep(0.1)
        with app.span("second"):
            ebpftrace.trace_socket(sock)
            peer.sendto(b"22", sock.getsockname())
            sock.recv(100)
    return app.spans()


def test_read_while_released():
    """What a socket went through before it was released is not taken for what it goes through when tied again."""
    [received] = found(run(read_while_released).value, "sock_receive")

    assert 2 == received["attributes"]["ebpftrace.sock.bytes"]
    assert received["attributes"]["ebpftrace.sock.waited_ns"] < 50_000_000


def many():
    """Thousands of sockets, most of which do nothing; then new ones with the same descriptors."""
    import resource

    import ebpftrace

    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    app = App(programs=["sock"])
    with app.span("many"):
        sockets = [socket.socket(type=kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM) for _ in range(1500)]
        for sock in sockets:
            ebpftrace.trace_socket(sock)
        numbers = {sock.fileno() for sock in sockets}
        for sock in sockets:
            sock.close()
    with app.span("again"), socket.socket(type=socket.SOCK_DGRAM) as sock:
        reused = sock.fileno() in numbers
        sock.sendto(b"not tied", ("127.0.0.1", 9))
    return {"spans": app.spans(), "reused": reused, "stats": ebpftrace.stats()}


def test_many():
    """The kernel forgets a tie with its socket, also one that never connected; there is room for thousands."""
    value = run(many).value

    assert {"tied": 3000} == value["stats"]["sockets"]
    assert 1500 == len(found(value["spans"], "tcp_destroy"))
    assert value["reused"]
    assert set() == names(value["spans"], "again")
    assert [] == found(value["spans"], "sock_send")


def flood():
    """More packets than one tie may show, then another tie."""
    import ebpftrace

    app = App(programs=["sock"])
    with socket.socket(type=socket.SOCK_DGRAM) as peer, socket.socket(type=socket.SOCK_DGRAM) as sock:
        peer.bind(("127.0.0.1", 0))
        for name in ("first", "second"):
            with app.span(name):
                ebpftrace.trace_socket(sock)
                for _ in range(500):
                    sock.sendto(b"x", peer.getsockname())
    return {"spans": app.spans(), "dropped": ebpftrace.stats()["programs"]["sock"]["dropped"]}


def test_limit():
    """A tie makes so many spans of packets and no more; the rest is counted, and the next tie starts anew."""
    value = run(flood).value

    spans = [span for span in value["spans"] if span["name"] != "sock_release"]  # kernels with fentry tell of it
    assert [256, 256] == [len(below(spans, named(spans, name))) for name in ("first", "second")]
    assert {"ring_full": 0, "map_full": 0, "limit": 2 * (2 * 500 - 256)} == value["dropped"]


def unheard():
    """More datagrams to a closed port than one tie may show."""
    import ebpftrace

    app = App(programs=["sock"])
    with socket.socket(type=socket.SOCK_DGRAM) as closed, socket.socket(type=socket.SOCK_DGRAM) as sock:
        closed.bind(("127.0.0.1", 0))
        sock.connect(closed.getsockname())
        closed.close()
        with app.span("x"):
            ebpftrace.trace_socket(sock)
            for _ in range(400):
                with contextlib.suppress(ConnectionRefusedError):
                    sock.send(b"x")
    return app.spans()


def test_limit_of_errors():
    """Errors are limited like all that a peer can cause."""
    assert 128 == len(found(run(unheard).value, "sock_error"))


def without_the_program():
    """The library runs, but not this program."""
    import ebpftrace

    app = App(programs=["exec"])
    with app.span("x"), socket.socket() as sock:
        ebpftrace.trace_socket(sock)
        ebpftrace.trace_socket(sock)
    return ebpftrace.stats()["sockets"]


def test_without_the_program():
    """Where the program is not loaded nothing happens, with one log line and a count."""
    outcome = run(without_the_program)

    assert {"no_program": 2} == outcome.value
    assert ["WARNING trace_socket() has no effect: the program 'sock' is not loaded"] == outcome.log


def unusable():
    """What has a descriptor, but is no internet socket."""
    import ebpftrace

    app = App(programs=["sock"])
    with app.span("x"):
        closed = socket.socket()
        closed.close()
        left, right = socket.socketpair()
        with left, right, Path(__file__).open("rb") as file:
            for each in (closed, left, file, 999_999):
                ebpftrace.trace_socket(each)
    return {"sockets": ebpftrace.stats()["sockets"], "spans": app.spans()}


def test_unusable():
    """A closed socket, a Unix socket and a file are counted and change nothing."""
    value = run(unusable).value

    assert {"not_a_socket": 3, "not_inet": 1} == value["sockets"]
    assert [] == kernel(value["spans"])


def forked():
    """A child of a fork ties a socket of its own."""
    import os

    import ebpftrace

    app = App(programs=["sock"])
    with socket.socket(type=socket.SOCK_DGRAM) as sock, app.span("x"):
        ebpftrace.trace_socket(sock)
        child = os.fork()
        if child == 0:
            ebpftrace.trace_socket(sock)
            os._exit(0 if ebpftrace.stats().get("sockets", {}).get("tied", 0) == 0 else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_fork():
    """The child of a fork does not touch its parent's ties."""
    assert 0 == run(forked).value


def listed():
    """A tied socket, in the list of ss(8)."""
    import ebpftrace

    app = App(programs=["sock"])
    with Peer(answer) as peer, socket.create_connection(peer.address) as sock, app.span("x"):
        ebpftrace.trace_socket(sock)
        sock.sendall(b"hello")
        text = command("ss", "-tne", "dst", f"127.0.0.1:{peer.address[1]}")
    return {"spans": app.spans(), "listed": text}


def test_cookie():
    """The cookie is the one by which ss(8) lists the socket."""
    value = run(listed).value

    [cookie] = {span["attributes"]["ebpftrace.sock.cookie"] for span in kernel(value["spans"])}
    assert f"sk:{int(cookie, 16):x} " in value["listed"]
