# SPDX-License-Identifier: Apache-2.0
"""trace_socket() finds the socket and the span, and says what it could not do."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import threading
import time

import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from ebpftrace.context import sockets
from ebpftrace.context.sockets import trace_socket
from ebpftrace.errors import BpfError

TRACE_ID = 0x0102030405060708090A0B0C0D0E0F10
SPAN_ID = 0x1112131415161718


class FakeTies(dict):
    """The map, in memory; `error` is what the kernel refuses with."""

    error = 0

    def update(self, key, value):
        """Set a key's value."""
        if self.error:
            raise BpfError("update map 'ties'", errno=self.error)
        self[struct.unpack("=i", key)[0]] = struct.unpack("=16s8s8sQ", value)

    def delete(self, key):
        """Remove a key."""
        if self.pop(struct.unpack("=i", key)[0], None) is None:
            raise BpfError("remove a key of map 'ties'", errno=errno.ENOENT)


@pytest.fixture
def ties():
    """The library runs, with the program."""
    ties = FakeTies()
    sockets.arm(ties, 0)
    yield ties
    sockets.forget()


@pytest.fixture
def sock():
    """A socket that is not connected."""
    with socket.socket() as sock:
        yield sock


def a_span(span_id=SPAN_ID, *, sampled=True):
    """A span that is not recorded here."""
    return NonRecordingSpan(SpanContext(TRACE_ID, span_id, is_remote=False, trace_flags=TraceFlags(int(sampled))))


def cookie_of(sock):
    """The kernel's own number of a socket."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, sockets.SO_COOKIE, 8), "little")


def test_current_span(ties, sock):
    """A socket is tied to the current span: ids in W3C order, its cookie, and since when."""
    before = time.monotonic_ns()
    with use_span(a_span()):
        trace_socket(sock)
    trace_id, span_id, cookie, since_ns = ties[sock.fileno()]

    assert (TRACE_ID, SPAN_ID) == (int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"))
    assert cookie_of(sock) == int.from_bytes(cookie, "big")
    assert before <= since_ns <= time.monotonic_ns()
    assert {"tied": 1} == sockets.counters()


def test_time_namespace(sock):
    """The time of a tie is the kernel's, not that of this process's time namespace."""
    ties = FakeTies()
    sockets.arm(ties, 10**9)
    trace_socket(sock, span=a_span())
    sockets.forget()

    assert 0 <= time.monotonic_ns() - ties[sock.fileno()][3] - 10**9 < 10**9


def test_given_span(ties, sock):
    """A span that is given wins over the current one."""
    with use_span(a_span(1)):
        trace_socket(sock, span=a_span(2))

    assert 2 == int.from_bytes(ties[sock.fileno()][1], "big")


def test_again(ties, sock):
    """A socket belongs to the last span that it was tied to."""
    trace_socket(sock, span=a_span(1))
    trace_socket(sock, span=a_span(2))

    assert 2 == int.from_bytes(ties[sock.fileno()][1], "big")
    assert 1 == len(ties)


@pytest.mark.parametrize("span", [a_span(sampled=False), NonRecordingSpan(SpanContext(0, 0, is_remote=False)), None])
def test_release(ties, sock, span):
    """In a span that is not sampled, or in none, a socket is released."""
    trace_socket(sock, span=a_span())
    trace_socket(sock, span=span)
    trace_socket(sock, span=span)

    assert {} == ties
    assert {"tied": 1, "released": 1, "not_tied": 1} == sockets.counters()


class Wrapper:
    """Something with a descriptor and nothing else."""

    def __init__(self, fd):
        self._fd = fd

    def fileno(self):
        """The descriptor."""
        return self._fd


def test_descriptors(ties, sock):
    """A descriptor, or anything that has one, is as good as a socket, and stays open."""
    trace_socket(sock.fileno(), span=a_span())
    by_number = dict(ties)
    ties.clear()
    trace_socket(Wrapper(sock.fileno()), span=a_span())

    assert [sock.fileno()] == list(by_number) == list(ties)
    assert cookie_of(sock) == int.from_bytes(by_number[sock.fileno()][2], "big")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_default_timeout(ties, family):
    """A descriptor that blocks still does afterwards, whatever time-out new sockets of Python get."""
    with socket.socket(family) as sock:
        socket.setdefaulttimeout(5)
        try:
            trace_socket(sock.fileno(), span=a_span())
        finally:
            socket.setdefaulttimeout(None)

        assert os.get_blocking(sock.fileno())
        assert [sock.fileno()] == list(ties)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_kinds(ties, family, kind):
    """TCP and UDP, IPv4 and IPv6."""
    with socket.socket(family, kind) as sock:
        trace_socket(sock, span=a_span())

        assert [sock.fileno()] == list(ties)


def test_not_an_internet_socket(ties, tmp_path):
    """What cannot be tied is counted, by reason, and nothing is raised."""
    closed = socket.socket()
    closed.close()
    left, right = socket.socketpair()
    with left, right, (tmp_path / "file").open("w") as file:
        for each in (closed, file, 999_999, -1, left, left.fileno()):
            trace_socket(each, span=a_span())

    assert {} == ties
    assert {"not_a_socket": 4, "not_inet": 2} == sockets.counters()


class Closed:
    """A file-like object after its end."""

    def __init__(self, error):
        self._error = error

    def fileno(self):
        """There is none any more."""
        raise self._error


@pytest.mark.parametrize(
    "sock", [1 << 40, -(1 << 40), Closed(ValueError("I/O operation on closed file")), Closed(OSError("it is closed"))]
)
def test_no_descriptor(ties, sock):
    """A number that no descriptor has, and what is closed, are counted, not raised."""
    trace_socket(sock, span=a_span())
    trace_socket(sock)

    assert {} == ties
    assert {"not_a_socket": 1, "not_tied": 1} == sockets.counters()


def test_release_of_what_is_no_socket(ties):
    """Releasing what was never tied, or is no socket at all, is counted."""
    for each in (-1, 999_999):
        trace_socket(each)

    assert {"not_tied": 2} == sockets.counters()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1",), "takes a socket or a file descriptor, not str"),
        ((None,), "not NoneType"),
        ((True,), "not bool"),
        ((4, "span"), "span= takes a Span, not str"),
    ],
)
@pytest.mark.parametrize("running", [True, False])
def test_misuse(running, arguments, message):
    """What can never work is a TypeError, also when the library does not run."""
    if running:
        sockets.arm(FakeTies(), 0)
    try:
        with pytest.raises(TypeError, match=message):
            trace_socket(arguments[0], **({"span": arguments[1]} if arguments[1:] else {}))
    finally:
        sockets.forget()


def test_not_running(sock, caplog):
    """Without a running library nothing happens, and nothing is said."""
    trace_socket(sock, span=a_span())

    assert {} == sockets.counters()
    assert [] == caplog.messages


def test_without_the_program(sock, caplog):
    """Where the program is not loaded, one log line says so, and each call is counted."""
    sockets.arm(None, 0)
    trace_socket(sock, span=a_span())
    trace_socket(sock, span=a_span())
    counted = sockets.counters()
    sockets.forget()

    assert {"no_program": 2} == counted
    assert ["trace_socket() has no effect: the program 'sock' is not loaded"] == caplog.messages


def test_refused(ties, sock, caplog):
    """What the kernel refuses is counted, and said once, with the reason."""
    ties.error = errno.ENOMEM
    trace_socket(sock, span=a_span())
    trace_socket(sock, span=a_span())

    assert {"refused": 2} == sockets.counters()
    [message] = caplog.messages
    assert "ENOMEM" in message


def test_log_handler_that_ties(ties, sock):
    """A log handler may tie the socket that it writes to, also while it says that the kernel refused one."""

    class Remote(logging.Handler):
        def emit(self, record):
            trace_socket(sock, span=a_span(2))

    handler = Remote()
    sockets.logger.addHandler(handler)
    ties.error = errno.ENOMEM
    done = threading.Thread(target=trace_socket, args=(sock,), kwargs={"span": a_span()}, daemon=True)
    done.start()
    done.join(5)
    sockets.logger.removeHandler(handler)

    assert not done.is_alive()
    assert {"refused": 2} == sockets.counters()


def test_after_the_end(ties, sock):
    """After the library ended the map is not touched, and the counts can still be read."""
    trace_socket(sock, span=a_span())
    sockets.disarm()
    trace_socket(sock, span=a_span(2))

    assert SPAN_ID == int.from_bytes(ties[sock.fileno()][1], "big")
    assert {"tied": 1} == sockets.counters()


def test_fork_while_another_thread_ties(ties, sock):
    """The child of a fork is not stopped by a lock that a thread of its parent held."""
    sockets._lock.acquire()
    sockets.forget()
    done = threading.Thread(target=trace_socket, args=(sock,), kwargs={"span": a_span()}, daemon=True)
    done.start()
    done.join(5)

    assert not done.is_alive()
    assert {} == ties
