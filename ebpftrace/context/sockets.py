# SPDX-License-Identifier: Apache-2.0
"""Tying a socket to a span: `trace_socket()`.

What the kernel does with a packet it does in no thread of the application's, so there it is the socket, not the
thread, that tells which span a packet belongs to. The tie lies in storage that the kernel keeps with the socket and
frees with it.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import trace

from ebpftrace.errors import BpfError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("ebpftrace.context")

SO_DOMAIN, SO_COOKIE = 39, 57
"""asm-generic/socket.h; Python has no names for them."""

_TIE = struct.Struct("=16s8s8sQ")
"""struct ebt_sock_tie: trace id, span id, cookie, since when (ns)."""
_FD = struct.Struct("=i")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_MAX_FD = (1 << 31) - 1

Socket = Any
"""A `socket.socket`, anything with its `fileno()`, or a file descriptor."""


class Ties(Protocol):
    """The map of ties, by file descriptor."""

    def update(self, key: bytes, value: bytes) -> None:
        """Set a key's value."""

    def delete(self, key: bytes) -> None:
        """Remove a key."""


_lock = threading.Lock()  # the map must not be closed while a thread writes to it
_ties: Ties | None = None
_running = False
_ahead_ns = 0
_counts: Counter[str] = Counter()
_told: set[str] = set()


def arm(ties: Ties | None, ahead_ns: int) -> None:
    """Begin: called when the library starts.

    Args:
        ties: where the program "sock" looks; None when it is not loaded.
        ahead_ns: what this process's CLOCK_MONOTONIC is ahead of the kernel's.
    """
    global _ties, _running, _ahead_ns
    with _lock:
        _ties, _running, _ahead_ns = ties, True, ahead_ns
        _counts.clear()
        _told.clear()


def disarm() -> None:
    """End, before the map is closed; what was counted stays to be read."""
    global _ties, _running
    with _lock:
        _ties, _running = None, False


def forget() -> None:
    """In the child of a fork: the map is the parent's, and whoever held the lock is not here."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    disarm()
    _counts.clear()


def counters() -> dict[str, int]:
    """Return how often a socket was tied or released, and how often that could not be, by reason."""
    return dict(_counts)


def trace_socket(sock: Socket, *, span: trace.Span | None = None) -> None:
    """Tie a socket to a span: what the kernel does with it from now on becomes kernel spans below that span.

    The tie holds until the socket is closed or is given here again; so each phase of a connection (dial, write, read,
    close) that calls this within a span of its own has the kernel spans of its time. It may be called before
    `connect()`, and from any thread. Within no span, or within one that is not sampled, the socket is released.

    Works for TCP and UDP over IPv4 and IPv6. Where the program "sock" is not loaded, or the socket is of another kind
    or closed already, this does nothing, which `ebpftrace.stats()["sockets"]` counts.

    Args:
        sock: a `socket.socket`, anything with a `fileno()` (an `ssl.SSLSocket`, asyncio's
            `transport.get_extra_info("socket")`, http.client's `connection.sock`), or a file descriptor.
        span: the span; default: the current one.

    Raises:
        TypeError: one of them is something else.
    """
    fd = _descriptor(sock)
    context = _context_of(span)
    if not _running:
        return
    if not context.is_valid or not context.trace_flags.sampled:
        _change(lambda ties: _release(ties, fd))
        return
    reason, cookie = _examine(sock, fd)
    if reason:
        _count(reason)
        return
    ids = context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big")
    _change(lambda ties: _tie(ties, fd, *ids, cookie))


def _descriptor(sock: Socket) -> int:
    if isinstance(sock, int) and not isinstance(sock, bool):
        return sock
    fileno = getattr(sock, "fileno", None)
    if not callable(fileno):
        raise TypeError(f"trace_socket() takes a socket or a file descriptor, not {type(sock).__name__}")
    try:
        fd: int = fileno()
    except (OSError, ValueError):  # a file-like object that is closed
        return -1
    return fd


def _context_of(span: trace.Span | None) -> trace.SpanContext:
    if span is None:
        return trace.get_current_span().get_span_context()
    if not isinstance(span, trace.Span):
        raise TypeError(f"span= takes a Span, not {type(span).__name__}")
    return span.get_span_context()


def _examine(sock: Socket, fd: int) -> tuple[str, bytes]:
    """Why a socket cannot be tied ("" when it can), and its cookie."""
    try:
        if isinstance(sock, socket.socket):
            family, cookie = sock.family, sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
        else:
            family, cookie = struct.unpack("=i", _option(fd, SO_DOMAIN, 4))[0], _option(fd, SO_COOKIE, 8)
    except OSError:
        return "not_a_socket", b""
    return ("", cookie) if family in _FAMILIES else ("not_inet", b"")


def _option(fd: int, option: int, size: int) -> bytes:
    """getsockopt(2) of a descriptor: a `socket.socket` of it would put it into Python's default blocking mode."""
    import ctypes  # late: most applications have sockets

    if not 0 <= fd <= _MAX_FD:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    value, length = ctypes.create_string_buffer(size), ctypes.c_uint(size)
    if _libc().getsockopt(fd, socket.SOL_SOCKET, option, value, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return value.raw


@functools.cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _change(change: Callable[[Ties], str]) -> None:
    """Do something to the map and count what came of it."""
    try:
        with _lock:
            outcome = "no_program" if _ties is None else change(_ties)
            _counts[outcome] += 1
    except BpfError as error:
        _count("refused")
        _tell("refused", "trace_socket() could not tie a socket: %s", error)
        return
    if outcome == "no_program" and _running:
        _tell("no_program", "trace_socket() has no effect: the program 'sock' is not loaded")


def _tell(topic: str, text: str, *values: object) -> None:
    """Log it once, and without the lock: a log handler may have a socket that it ties."""
    if topic not in _told:
        _told.add(topic)
        logger.warning(text, *values)


def _count(reason: str) -> None:
    with _lock:
        _counts[reason] += 1


def _tie(ties: Ties, fd: int, trace_id: bytes, span_id: bytes, cookie: bytes) -> str:
    number = int.from_bytes(cookie, sys.byteorder)
    since_ns = time.monotonic_ns() - _ahead_ns
    ties.update(_FD.pack(fd), _TIE.pack(trace_id, span_id, number.to_bytes(8, "big"), since_ns))
    return "tied"


def _release(ties: Ties, fd: int) -> str:
    try:
        ties.delete(_FD.pack(fd))
    except (BpfError, struct.error):  # it was not tied, or is no socket
        return "not_tied"
    return "released"
