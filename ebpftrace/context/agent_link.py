# SPDX-License-Identifier: Apache-2.0
"""An application's end of the agent's socket."""

from __future__ import annotations

import _socket  # not `socket`: gevent puts a class of its own there, which would wait in the hub of another thread
import array
import errno
import logging
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from ebpftrace._version import version
from ebpftrace.context import _publisher
from ebpftrace.context.registration import (
    MAX_ANSWER,
    PROTOCOL,
    TABLE_FDS,
    Answer,
    Hello,
    ProtocolError,
    Refused,
    Welcome,
    decode_answer,
    encode,
)
from ebpftrace.errors import EbpftraceError, UnsupportedError

logger = logging.getLogger("ebpftrace")

_BPF_MAP_TYPE_ARRAY = 2
_MAX_FDS = 8
_ANCILLARY = _socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
_SOON = frozenset({"busy", "rate", "late"})
"""Refusals that pass by themselves."""

_PASSING = _SOON | {"quota", "full", "failed"}
"""Those that may pass."""


class RefusedError(UnsupportedError):
    """The agent said no.

    Args:
        answer: what it said.

    Attributes:
        soon: it may say yes in a second.
        passing: it may say yes some day.
    """

    def __init__(self, answer: Refused) -> None:
        super().__init__("registration with the agent", answer.text)
        self.soon = answer.reason in _SOON
        self.passing = answer.reason in _PASSING


class AwayError(UnsupportedError):
    """The agent does not answer.

    Args:
        path: of its socket.
        error: of the kernel.
        timeout_s: how long was waited.

    Attributes:
        soon: it is there, and may answer in a second.
    """

    def __init__(self, path: str, error: OSError, timeout_s: float) -> None:
        super().__init__(f"the agent at {path}", _words(error, timeout_s))
        self.soon = isinstance(error, BlockingIOError) or error.errno in (errno.ECONNRESET, errno.EPIPE)


@dataclass(slots=True)
class Table:
    """The descriptors of this process's slots and lines; closed once they are mapped."""

    slots: int
    lines: int

    def close(self) -> None:
        """Close both; idempotent."""
        for fd in (self.slots, self.lines):
            if fd >= 0:
                os.close(fd)
        self.slots = self.lines = -1


class AgentLink:
    """One connection, on which this process is registered.

    Args:
        path: of the agent's socket.
        token: of the registration before this one; "" at the first.
        timeout_s: the longest that connecting, asking and being answered may take, each.

    Attributes:
        welcome: the agent's answer.
        table: what came with it.

    Raises:
        UnsupportedError: there is no agent (`AwayError`), or it refused (`RefusedError`).
        ProtocolError: it is no agent, or one of another kind.
    """

    def __init__(self, path: str, token: str = "", *, timeout_s: float = 5.0) -> None:
        self._path = path
        self._socket = _connect(path, timeout_s)
        try:
            self.welcome, self.table = self._register(token)
            self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, _timeval(0.0))
        except OSError as error:
            self.close()
            raise AwayError(path, error, timeout_s) from error
        except BaseException:
            self.close()
            raise

    def _register(self, token: str) -> tuple[Welcome, Table]:
        hello = Hello(PROTOCOL, _publisher.TABLE_SLOTS, token, version[:64])
        try:
            self._socket.send(encode(hello), _socket.MSG_NOSIGNAL)
        except BrokenPipeError:  # it has said why already, and closed the connection
            logger.debug("the agent did not wait for the hello")
        data, fds = self._receive()
        try:
            answer = decode_answer(data)
            if isinstance(answer, Refused):
                raise RefusedError(answer)
            if not isinstance(answer, Welcome) or len(fds) != TABLE_FDS:
                raise ProtocolError(f"the agent at {self._path} answered with something else than a welcome")
            self._check_map(fds[0], _publisher.SLOT_BYTES, frozen=False)
            self._check_map(fds[1], _publisher.LINE_BYTES, frozen=True)
        except EbpftraceError:
            for fd in fds:
                os.close(fd)
            raise
        return answer, Table(*fds)

    def _check_map(self, fd: int, value_size: int, *, frozen: bool) -> None:
        """Is it what will be mapped? A file that somebody can cut short would end this process by SIGBUS.

        Raises:
            ProtocolError: it is not.
        """
        try:
            text = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
        except OSError as error:  # before 5.14, of a process that gave up privileges
            if self._is_roots():
                return
            raise ProtocolError(f"what the agent at {self._path} sent cannot be checked: {error}") from error
        said = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        found = tuple(int(said.get(name, 0)) for name in ("map_type", "value_size", "max_entries"))
        expected = (_BPF_MAP_TYPE_ARRAY, value_size, _publisher.TABLE_SLOTS)
        if found != expected or (frozen and not int(said.get("frozen", 0))):
            raise ProtocolError(f"the agent at {self._path} sent something else than a context table")

    def _is_roots(self) -> bool:
        raw = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        return bool(struct.unpack("=iII", raw)[1] == 0)

    def _receive(self) -> tuple[bytes, list[int]]:
        data, ancillary, _, _ = self._socket.recvmsg(MAX_ANSWER, _ANCILLARY, _socket.MSG_CMSG_CLOEXEC)
        fds: list[int] = []
        for level, kind, content in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                fds += numbers
        if not data:
            for fd in fds:
                os.close(fd)
            raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return data, fds

    def wait(self) -> Answer | None:
        """Wait for what the agent says next; None when the connection is over. Releases the GIL meanwhile.

        Raises:
            ProtocolError: it is not understood.
        """
        try:
            data, fds = self._receive()
        except OSError:
            return None
        for fd in fds:  # none belong to what may come now
            os.close(fd)
        return decode_answer(data)

    def end(self) -> None:
        """Wake a thread in `wait()`, and be registered no more; from any thread."""
        try:
            self._socket.shutdown(_socket.SHUT_RDWR)
        except OSError as error:  # the agent was faster
            if error.errno not in (errno.ENOTCONN, errno.EBADF):
                raise

    def close(self) -> None:
        """Close the descriptors; idempotent. In the child of a fork, the parent stays registered."""
        self._socket.close()


def _connect(path: str, timeout_s: float) -> _socket.socket:
    made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)  # close-on-exec, as all that Python makes
    try:
        # by the kernel: a socket that does not block is turned away at once while others wait to be accepted
        for option in (_socket.SO_SNDTIMEO, _socket.SO_RCVTIMEO):
            made.setsockopt(_socket.SOL_SOCKET, option, _timeval(timeout_s))
        made.connect(path)
    except OSError as error:
        made.close()
        raise AwayError(path, error, timeout_s) from error
    return made


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    return struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))


def _words(error: OSError, timeout_s: float) -> str:
    if isinstance(error, BlockingIOError):
        return f"no answer within {timeout_s:g} s"
    return {
        errno.ENOENT: "there is no such socket: no agent runs, or it listens elsewhere (its option --socket)",
        errno.ECONNREFUSED: "nobody listens: the agent has ended",
        errno.EACCES: "a directory on the way to its socket is closed to this user",
        errno.EPROTOTYPE: "it is a socket of another kind",
        errno.EPIPE: "it closed the connection without an answer",
        errno.ECONNRESET: "it closed the connection without an answer",
    }.get(error.errno or 0, error.strerror or str(error))


def unreachable(error: EbpftraceError) -> bool:
    """May it be another answer in a while?"""
    return not isinstance(error, RefusedError) or error.passing
