# SPDX-License-Identifier: Apache-2.0
"""The program `sock` by tracepoints and by functions of the kernel: the same spans of the same traffic."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import Counter
from contextlib import ExitStack

import machine
import pytest
from harness import run
from sockets import Peer, answer
from variants import Variant, why_no_fentry

pytestmark = pytest.mark.program("sock")

REPLACED = ("sk_data_ready", "sock_send_length", "sock_recv_length")
"""Tracepoints of newer kernels that functions stand in for."""

ONLY_BY_FUNCTIONS = {"sock_send", "sock_release"}
TIE = struct.Struct("=16s8s8sQ")
TIMES = {f"ebpftrace.sock.{key}" for key in ("rtt_us", "waited_ns")}  # a clock is read by each on its own
MS = 1_000_000


def tie(variants, sock):
    """Have all of them see a socket."""
    ids = os.urandom(16), os.urandom(8)
    for variant in variants.values():
        variant.object.map("ties").update(
            struct.pack("=i", sock.fileno()), TIE.pack(*ids, bytes(8), time.monotonic_ns())
        )


def traffic(variants):
    """A TCP connection from its beginning to its end, and datagrams both ways."""
    with Peer(answer) as peer, socket.socket() as sock:
        tie(variants, sock)
        sock.connect(peer.address)
        sock.sendall(b"hello")
        while sock.recv(4096):
            pass
    with socket.socket(type=socket.SOCK_DGRAM) as peer, socket.socket(type=socket.SOCK_DGRAM) as sock:
        peer.bind(("127.0.0.1", 0))
        sock.connect(peer.getsockname())
        tie(variants, sock)
        sock.send(b"ping")
        peer.sendto(b"pong!", sock.getsockname())
        time.sleep(0.02)
        sock.recv(100)


def observed():
    """What each variant makes of it."""
    with ExitStack() as stack:
        variants = {
            "tracepoints": stack.enter_context(Variant("sock", extras=False)),
            "chosen": stack.enter_context(Variant("sock")),
            "functions": stack.enter_context(Variant("sock", hidden=REPLACED)),
        }
        traffic(variants)
        time.sleep(0.1)
        return {
            name: {"hooks": variant.hooks(), "spans": [plain(span) for span in variant.spans()]}
            for name, variant in variants.items()
        }


def plain(span):
    """What must be equal, and what may differ by the time between two functions."""
    attributes = {key: value for key, value in span.attributes.items() if key not in TIMES and key != "ebpftrace.hook"}
    return {
        "name": span.name,
        "transport": attributes["network.transport"],
        "attributes": sorted(map(str, attributes.items())),
        "parent": format(span.parent_span_id, "x"),
        "start": span.start_ns,
        "end": span.end_ns,
    }


@pytest.fixture(scope="module")
def seen():
    """All variants, having seen the same traffic."""
    reason = why_no_fentry()
    if reason:
        pytest.skip(f"there is only one variant here: {reason}")
    found = run(observed).value
    for name, variant in found.items():
        print(name, *variant["hooks"])
    return found


def alike(variant, without=()):
    """How often each span came, but for its times; round trips are reported by time, not by event."""
    return Counter(
        (span["name"], span["transport"], span["parent"], *span["attributes"])
        for span in variant["spans"]
        if span["name"] not in {*without, "tcp_rtt"}
    )


def test_hooks(seen):
    """The variants really differ: no function of the kernel in the one, all stand-ins in the other."""
    kinds = {name: {hook.partition("/")[0] for hook in variant["hooks"]} for name, variant in seen.items()}

    assert {"tp_btf"} == kinds["tracepoints"]
    assert {"tp_btf", "fentry", "fexit"} == kinds["functions"]
    assert "fentry" in kinds["chosen"]


def test_same_spans(seen):
    """Whether a newer kernel's tracepoints or functions are hooked makes no difference to any span."""
    assert alike(seen["functions"]) == alike(seen["chosen"])
    assert {"sock_send", "sock_receive", "sock_release", "tcp_state", "tcp_connect"} <= {
        span["name"] for span in seen["functions"]["spans"]
    }


def test_tracepoints_alone(seen):
    """Tracepoints alone give the same spans, less writes, closing and what is read from UDP sockets."""
    all_but = Counter({
        key: count
        for key, count in alike(seen["functions"], without=ONLY_BY_FUNCTIONS).items()
        if key[:2] != ("sock_receive", "udp")
    })  # fmt: skip

    assert all_but == alike(seen["tracepoints"])
    assert ("sock_receive", "tcp") in {key[:2] for key in all_but}


def test_times(seen):
    """Spans of the variants begin and end together."""
    apart = (5 if machine.PATIENCE == 1 else 50) * MS  # an emulated machine stands still for a while at new code
    for name in ("tracepoints", "chosen"):
        for one in (span for span in seen[name]["spans"] if span["name"] in {"tcp_connect", "sock_receive"}):
            [other] = [
                span
                for span in seen["functions"]["spans"]
                if (span["name"], span["attributes"]) == (one["name"], one["attributes"])
            ]
            assert other["start"] == pytest.approx(one["start"], abs=apart), one
            assert other["end"] == pytest.approx(one["end"], abs=apart), one
