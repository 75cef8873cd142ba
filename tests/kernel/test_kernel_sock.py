# SPDX-License-Identifier: Apache-2.0
"""What the kernel does with a socket comes under the span that the socket is tied to, and under no other."""

from __future__ import annotations

import socket
import struct
import time

import pytest
from harness import App, below, kernel, named, run
from sockets import NETWORK, Peer, answer, blackhole, found, names, narrow, states

pytestmark = pytest.mark.program("sock")

MS = 1_000_000
FAMILIES = [socket.AF_INET, socket.AF_INET6]


def connection(app, peer, prefix, *, trace):
    """A connection in four phases, each in a span of its own."""
    with app.span(prefix):
        sock = socket.socket(peer_family(peer))
        with app.span(f"{prefix} dial"):
            trace(sock)
            sock.connect(peer.address)
        with app.span(f"{prefix} write"):
            trace(sock)
            sock.sendall(b"hello")
        with app.span(f"{prefix} read"):
            trace(sock)
            while sock.recv(4096):
                pass
        with app.span(f"{prefix} close"):
            trace(sock)
            sock.close()


def peer_family(peer):
    """IPv6 addresses have four parts."""
    return socket.AF_INET6 if len(peer.address) == 4 else socket.AF_INET


def phases(family):
    """A traced connection and one that is not."""
    import ebpftrace

    app = App(programs=["sock"])
    with Peer(answer, family=family) as peer:
        connection(app, peer, "traced", trace=ebpftrace.trace_socket)
        connection(app, peer, "untraced", trace=lambda _: None)
    return {"spans": app.spans(), "stats": ebpftrace.stats(), "port": peer.address[1]}


@pytest.mark.parametrize("family", FAMILIES)
def test_phases(family):
    """Each phase of a connection owns what the kernel did in its time; an untraced connection owns nothing."""
    spans = run(phases, family).value["spans"]

    assert {"tcp_state", "tcp_connect", "device_queue"} == names(spans, "traced dial")
    assert {"sock_send", "device_queue"} <= names(spans, "traced write") <= {"sock_send", "device_queue", "tcp_rtt"}
    assert {"sock_receive", "tcp_state"} <= names(spans, "traced read")
    assert "tcp_rtt" in names(spans, "traced write") | names(spans, "traced read")
    closing = names(spans, "traced close") - {"sock_release"}  # an extra of kernels that have fentry
    assert {"tcp_state", "tcp_destroy", "device_queue"} == closing
    assert set() == names(spans, "traced")
    assert [] == [span for phase in ("", " dial", " write", " read", " close") for span in untraced(spans, phase)]


def untraced(spans, phase):
    """What is below a phase of the untraced connection."""
    return below(spans, named(spans, f"untraced{phase}"))


@pytest.mark.parametrize("family", FAMILIES)
def test_addresses(family):
    """Every span says which connection it is of, by the names of the semantic conventions."""
    value = run(phases, family).value
    address, version = ("::1", "ipv6") if family == socket.AF_INET6 else ("127.0.0.1", "ipv4")

    found_ = {
        tuple(
            span["attributes"].get(f"network.{key}")
            for key in ("local.address", "peer.address", "peer.port", "transport", "type")
        )
        for span in kernel(value["spans"])
        if span["attributes"].get("network.local.address")
    }
    assert {(address, address, value["port"], "tcp", version)} == found_
    [cookie] = {span["attributes"]["ebpftrace.sock.cookie"] for span in kernel(value["spans"])}
    assert int(cookie, 16) > 0
    assert 16 == len(cookie)


def test_the_connection_in_figures():
    """State changes, the handshake, bytes and times are what they were."""
    value = run(phases, socket.AF_INET).value
    spans = value["spans"]

    chain = states(spans)
    assert [("CLOSE", "SYN_SENT"), ("SYN_SENT", "ESTABLISHED")] == chain[:2]
    assert [each[1] for each in chain[:-1]] == [each[0] for each in chain[1:]]
    assert "CLOSE" == chain[-1][1]
    [connect] = found(spans, "tcp_connect")
    dial = named(spans, "traced dial")
    assert 0 < connect["wall"] < dial["wall"]
    assert "ESTABLISHED" == connect["attributes"]["ebpftrace.sock.state"]
    assert 0 < connect["attributes"]["ebpftrace.sock.rtt_us"] * 1000 <= connect["wall"]
    [sent] = found(spans, "sock_send")
    assert 5 == sent["attributes"]["ebpftrace.sock.bytes"]
    [received] = found(spans, "sock_receive")
    assert 1000 == received["attributes"]["ebpftrace.sock.bytes"]
    assert received["wall"] < 9 * MS  # the peer thought for 10 ms, and that was no waiting of data
    [ended] = found(spans, "tcp_destroy")
    assert (5, 0) == tuple(ended["attributes"][f"ebpftrace.sock.{key}"] for key in ("sent", "retransmits"))
    assert {"lo"} == {span["attributes"]["network.interface.name"] for span in found(spans, "device_queue")}


def test_spans_lie_in_their_parents():
    """Kernel spans of a phase begin within it."""
    spans = run(phases, socket.AF_INET).value["spans"]

    for phase in ("dial", "write", "read", "close"):
        parent = named(spans, f"traced {phase}")
        for span in below(spans, parent):
            assert parent["start"] <= span["start"] <= parent["end"] + MS, (phase, span)


def test_counts():
    """The library says how many sockets it tied, and that nothing was lost."""
    stats = run(phases, socket.AF_INET).value["stats"]

    assert {"tied": 4} == stats["sockets"]
    assert {"ring_full": 0, "map_full": 0, "limit": 0} == stats["programs"]["sock"]["dropped"]
    assert 0 == stats["programs"]["sock"]["undecoded"]


# --- what goes wrong ---------------------------------------------------------------------


def refused():
    """connect() to a port that nobody listens on."""
    import ebpftrace

    app = App(programs=["sock"])
    with app.span("dial"), socket.socket() as sock, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        ebpftrace.trace_socket(sock)
        with pytest.raises(ConnectionRefusedError):
            sock.connect(closed.getsockname())
    return app.spans()


def test_refused():
    """A refused connection is a failed handshake, with the reset that refused it and the socket's error."""
    spans = run(refused).value

    [connect] = found(spans, "tcp_connect")
    assert ("ECONNREFUSED", "ECONNREFUSED") == (connect["error"], connect["attributes"]["error.type"])
    assert "CLOSE" == connect["attributes"]["ebpftrace.sock.state"]
    [reset] = found(spans, "tcp_reset")
    assert "receive" == reset["attributes"]["network.io.direction"]
    assert "tp_btf/tcp_receive_reset" == reset["attributes"]["ebpftrace.hook"]
    assert ["ECONNREFUSED"] == [span["error"] for span in found(spans, "sock_error")]


ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER: close() sends a reset."""


def abort(connection):
    """Close with a reset as soon as something comes."""
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)


def resets():
    """One connection that the peer aborts, one that the application aborts."""
    import ebpftrace

    app = App(programs=["sock"])
    with Peer(abort) as peer, app.span("by the peer"), socket.create_connection(peer.address) as sock:
        ebpftrace.trace_socket(sock)
        sock.sendall(b"!")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    with Peer(answer) as peer, app.span("by us"), socket.create_connection(peer.address) as sock:
        ebpftrace.trace_socket(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    return app.spans()


def test_resets():
    """A reset is shown at either end, with its direction, and the state it ended."""
    spans = run(resets).value

    [theirs] = [span for span in below(spans, named(spans, "by the peer")) if span["name"] == "tcp_reset"]
    [ours] = [span for span in below(spans, named(spans, "by us")) if span["name"] == "tcp_reset"]
    assert "receive" == theirs["attributes"]["network.io.direction"]
    assert "transmit" == ours["attributes"]["network.io.direction"]
    assert "ECONNRESET" in {span["error"] for span in found(spans, "sock_error")}
    # kernels that tell why say so (6.10 on)
    assert not str(ours["attributes"].get("ebpftrace.sock.reason", "TCP_")).startswith("unknown")


TCP_REPAIR = 19
"""linux/tcp.h: close() then tells the peer nothing."""
UDP_SEGMENT = 103
"""linux/udp.h: one send, many datagrams of this size."""


def forgotten():
    """Write to a peer that knows nothing of the connection any more."""
    import ebpftrace

    app = App(programs=["sock"])
    with socket.create_server(("127.0.0.1", 0)) as listener, app.span("write"):
        sock = socket.create_connection(listener.getsockname())
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        connection.close()
        ebpftrace.trace_socket(sock)
        sock.sendall(b"hello?")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        sock.close()
    return app.spans()


def test_reset_is_no_zero_window():
    """A reset has no room for data to announce, and says nothing about the peer's."""
    spans = run(forgotten).value

    assert ["receive"] == [span["attributes"]["network.io.direction"] for span in found(spans, "tcp_reset")]
    assert [] == found(spans, "tcp_zero_window")


def unanswered():
    """connect() to a neighbour that never answers, given up after 1.5 s."""
    import ebpftrace

    blackhole()
    app = App(programs=["sock"])
    with app.span("dial"), socket.socket() as sock:
        ebpftrace.trace_socket(sock)
        sock.settimeout(1.5)
        with pytest.raises(TimeoutError):
            sock.connect(("10.9.9.2", 80))
    return app.spans()


def test_retransmitted_syn():
    """A SYN that nobody answers is sent again after a second."""
    spans = run(unanswered, prefix=NETWORK).value

    [again] = found(spans, "tcp_retransmit")
    assert ("SYN_SENT", 0) == tuple(again["attributes"][f"ebpftrace.sock.{key}"] for key in ("state", "bytes"))
    assert ("10.9.9.2", 80) == tuple(again["attributes"][f"network.peer.{key}"] for key in ("address", "port"))
    [connect] = found(spans, "tcp_connect")
    assert 900 * MS < again["start"] - connect["start"] < 1500 * MS
    assert 1400 * MS < connect["wall"] < 3000 * MS
    assert {"hole0"} == {span["attributes"]["network.interface.name"] for span in found(spans, "device_queue")}


def squeezed():
    """200 kB through a slow queue with little room."""
    import ebpftrace

    narrow()
    app = App(programs=["sock"])
    with Peer(lambda connection: [None for _ in iter(lambda: connection.recv(65536), b"")]) as peer:
        sock = socket.create_connection(peer.address)
        with app.span("write"):
            ebpftrace.trace_socket(sock)
            sock.sendall(bytes(200_000))
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)
        with app.span("close"):
            ebpftrace.trace_socket(sock)
            sock.close()
    return app.spans()


def test_congestion():
    """A full queue shows: packets wait in it, are dropped with the kernel's reason, and are sent again."""
    spans = run(squeezed, prefix=NETWORK).value

    drops = [span["attributes"] for span in found(spans, "packet_drop")]
    assert {"transmit"} == {each["network.io.direction"] for each in drops}
    assert {each.get("ebpftrace.sock.reason") for each in drops} <= {"QDISC_DROP", "QDISC_OVERLIMIT", None}
    again = [span["attributes"] for span in found(spans, "tcp_retransmit")]
    assert len({each["ebpftrace.sock.sequence"] for each in again}) > 1
    assert max(each["ebpftrace.sock.bytes"] for each in again) > 0
    waits = [span["wall"] for span in found(spans, "device_queue")]
    assert max(waits) > MS
    assert len([wait for wait in waits if wait]) > len(waits) // 2  # also the parts of one that was split
    [ended] = found(spans, "tcp_destroy")
    assert ended["attributes"]["ebpftrace.sock.retransmits"] >= len(again)


def connecting():
    """A connect() without an answer, to which two phases belong."""
    import ebpftrace

    blackhole()
    app = App(programs=["sock"])
    with socket.socket() as sock:
        sock.setblocking(False)
        with app.span("dial"):
            ebpftrace.trace_socket(sock)
            sock.connect_ex(("10.9.9.2", 80))
            time.sleep(0.05)
        with app.span("wait"):
            ebpftrace.trace_socket(sock)
            time.sleep(0.05)
            sock.close()
    return app.spans()


def test_connect_in_two_phases():
    """A handshake belongs to the phase that it ends in, from when that began."""
    spans = run(connecting, prefix=NETWORK).value

    [connect] = found(spans, "tcp_connect")
    assert named(spans, "wait")["id"] == connect["parent"]
    assert connect["start"] >= named(spans, "wait")["start"]


def split():
    """Datagrams that are split on their way to a slow device, with pauses."""
    import ebpftrace

    narrow()
    app = App(programs=["sock"])
    with socket.socket(type=socket.SOCK_DGRAM) as peer, socket.socket(type=socket.SOCK_DGRAM) as sock:
        peer.bind(("127.0.0.1", 0))
        with app.span("write"):
            ebpftrace.trace_socket(sock)
            for _ in range(15):
                sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
                sock.sendto(bytes(5000), peer.getsockname())
                time.sleep(0.05)
    return app.spans()


def test_split_packets():
    """A part of a packet is not taken for an earlier packet that had its place in memory."""
    waits = [span["wall"] for span in found(run(split, prefix=NETWORK).value, "device_queue")]

    assert len(waits) > 20
    assert max(waits) < 40 * MS


def stall(connection):
    """Read nothing for a while, then everything."""
    time.sleep(0.3)
    while connection.recv(65536):
        pass


def stalled(again):
    """Write to a peer that does not read; once it does, or else never."""
    import ebpftrace

    app = App(programs=["sock"])
    with Peer(stall if again else lambda _: time.sleep(0.4), buffer=4096) as peer:
        with app.span("write"), socket.create_connection(peer.address) as sock:
            ebpftrace.trace_socket(sock)
            sock.settimeout(None if again else 0.2)
            try:
                sock.sendall(bytes(4_000_000))
            except TimeoutError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        time.sleep(0.3)
    return app.spans()


@pytest.mark.parametrize("again", [True, False])
def test_zero_window(again):
    """A peer without room is a span until it has room again, or until the connection ends."""
    spans = run(stalled, again).value

    longest = max(found(spans, "tcp_zero_window"), key=lambda span: span["wall"])
    assert named(spans, "write")["id"] == longest["parent"]
    assert again == longest["attributes"]["ebpftrace.sock.opened"]
    assert longest["wall"] > (200 if again else 100) * MS
    assert longest["attributes"]["ebpftrace.sock.unsent"] > 0
    assert longest["end"] <= named(spans, "write")["end"] + MS


# --- UDP -----------------------------------------------------------------------------------


def datagrams(family):
    """One datagram each way, and one to a port that is closed."""
    import ebpftrace

    app = App(programs=["sock"])
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.socket(family, socket.SOCK_DGRAM) as peer, socket.socket(family, socket.SOCK_DGRAM) as sock:
        peer.bind((host, 0))
        sock.connect(peer.getsockname())
        with app.span("write"):
            ebpftrace.trace_socket(sock)
            sock.send(b"ping")
        peer.sendto(b"pong!", sock.getsockname())
        time.sleep(0.02)
        with app.span("read"):
            ebpftrace.trace_socket(sock)
            sock.recv(100)
        peer.close()
        with app.span("closed port"):
            ebpftrace.trace_socket(sock)
            sock.send(b"ping")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(100)
    return app.spans()


@pytest.mark.parametrize("family", FAMILIES)
def test_udp(family):
    """UDP sockets show what they sent and received, how long that waited, and that nobody was there."""
    spans = run(datagrams, family).value

    assert {"sock_send", "device_queue"} == names(spans, "write")
    [received] = below(spans, named(spans, "read"))
    assert ("sock_receive", 5) == (received["name"], received["attributes"]["ebpftrace.sock.bytes"])
    assert received["start"] >= named(spans, "read")["start"]
    assert received["attributes"]["ebpftrace.sock.waited_ns"] > 19 * MS  # before anybody asked for it, too
    assert {"udp"} == {span["attributes"]["network.transport"] for span in kernel(spans)}
    assert {"ECONNREFUSED"} == {span["error"] for span in found(spans, "sock_error")}


def overflow():
    """Datagrams to a socket that nobody reads."""
    import ebpftrace

    app = App(programs=["sock"])
    with socket.socket(type=socket.SOCK_DGRAM) as sock, socket.socket(type=socket.SOCK_DGRAM) as peer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.bind(("127.0.0.1", 0))
        with app.span("full"):
            ebpftrace.trace_socket(sock)
            for _ in range(20):
                peer.sendto(bytes(1000), sock.getsockname())
    return app.spans()


def test_udp_drop():
    """A datagram that a socket has no room for is shown with the kernel's reason."""
    spans = run(overflow).value

    drops = [span["attributes"] for span in found(spans, "packet_drop")]
    assert 20 > len(drops) > 10
    assert {"receive"} == {each["network.io.direction"] for each in drops}
    assert {each.get("ebpftrace.sock.reason") for each in drops} <= {"SOCKET_RCVBUFF", None}
    assert not any("network.peer.address" in each or "network.peer.port" in each for each in drops)
