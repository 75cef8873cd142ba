# SPDX-License-Identifier: Apache-2.0
"""The connections of applications: read without waiting, bounded in number, time and size."""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import resource
import select
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebpftrace.agent.logs import fields
from ebpftrace.agent.registry_desk import Accepted, RefusalError
from ebpftrace.agent.registry_limits import HALF_OPEN, HALF_OPEN_OF_USER, HELLO_S, Lines
from ebpftrace.agent.registry_peer import CREDENTIALS_SPACE, peer_of, pidfd_of, sender_of
from ebpftrace.context.registration import MAX_HELLO, Programs, ProtocolError, decode_hello, encode
from ebpftrace.spans.clock import namespace_offset_ns

if TYPE_CHECKING:
    from ebpftrace.agent.registry_desk import Desk, Registered
    from ebpftrace.agent.registry_policy import Peer
    from ebpftrace.agent.registry_tables import Table

logger = logging.getLogger("ebpftrace.agent.registry")

_ACCEPTS = 32  # in one round: then others have their turn
_ACCEPT_S = 0.2  # or for so long, if many of them register
_PAUSE_S = 0.05  # after so many
_OTHER_FDS = 256  # of the agent, beside connections
_FDS_EACH = 2  # socket, pidfd
_BUSY = ("busy", "the agent has too many connections that have said nothing; try again")
_FRIENDLY = frozenset({errno.EAGAIN, errno.ECONNABORTED, errno.EINTR})


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    peer: Peer
    accepted: Accepted
    deadline: float
    entry: Registered | None = None
    pidfd: int = -1


class Connections:
    """All connections, in one thread.

    Args:
        listener: the socket that they come from.
        desk: registers who is there.
    """

    def __init__(self, listener: socket.socket, desk: Desk) -> None:
        self._listener = listener
        self._desk = desk
        self._epoll: select.epoll | None = None
        self._open: dict[int, _Connection] = {}  # by socket, and by pidfd
        self._waiting: dict[int, _Connection] = {}  # half-open, the oldest first
        self._half_open: Counter[int] = Counter()
        self._paused_until = 0.0
        self._lines = Lines()
        self._ahead_ns = namespace_offset_ns()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(HALF_OPEN, (soft - _OTHER_FDS) // _FDS_EACH)
        self.count = 0
        desk.drop_earlier = self._drop_earlier

    def serve(self, epoll: select.epoll) -> None:
        """Have `epoll` tell of connections from now on."""
        self._epoll = epoll
        epoll.register(self._listener, select.EPOLLIN)

    # --- events

    def handle(self, fd: int) -> None:
        """Do what there is to do for a descriptor that is ready."""
        if fd == self._listener.fileno():
            self._accept()
            return
        connection = self._open.get(fd)
        if connection is None:  # closed in this round
            return
        if fd != connection.pidfd:
            self._read(connection)
        elif _ended(fd):  # not if it is the new descriptor of a number that was closed in this round
            self._drop(connection, "exited")

    def expire(self) -> None:
        """Close connections that said nothing in time; listen again after a pause."""
        now = time.monotonic()
        for connection in list(self._waiting.values()):
            if connection.deadline > now:
                break
            self._read(connection)  # it may have said it while others had their turn
            if self._waiting.get(connection.socket.fileno()) is connection:
                self._refuse(connection, "late", f"no hello came within {HELLO_S:g} s")
        if self._paused_until and now >= self._paused_until:
            self._paused_until = 0.0
            self._poll().modify(self._listener, select.EPOLLIN)

    def executed(self, tgid: int, when_ns: int) -> None:
        """A process executed another binary: what the one before registered is not this one's."""
        entry = self._desk.find(tgid)
        if entry is not None and entry.accepted_ns <= when_ns:
            self._drop(self._open[entry.connection], "exec")
        self._desk.executed(tgid)

    def executed_unknown(self) -> None:
        """The kernel had no room to tell which processes did."""
        self._check(self._everybody())
        self._desk.executed_unknown()

    def check_unwatched(self) -> None:
        """Look after processes whose end the kernel does not tell."""
        self._check([each for each in self._everybody() if each.pidfd < 0])

    def _check(self, connections: list[_Connection]) -> None:
        for connection in connections:
            over = self._desk.why_over(connection.entry, connection.peer) if connection.entry is not None else ""
            if over:
                self._drop(connection, over)

    def _drop_earlier(self, entry: Registered) -> None:
        """A process registers once more: else its connections would pile up."""
        self._drop(self._open[entry.connection], "replaced")

    def tell_programs(self) -> None:
        """Tell everybody which programs act."""
        packet = encode(Programs(dict(self._desk.programs)))
        for connection in self._everybody():
            if connection.entry is not None and not _send(connection.socket, packet):
                self._drop(connection, "closed")

    def leave(self, *, keep: bool) -> None:
        """The agent ends: close everything.

        Args:
            keep: leave tables pinned.
        """
        for connection in self._everybody():
            if connection.entry is not None:
                self._desk.leave(connection.entry, keep=keep)
            self._drop(connection, "ended")

    def close(self) -> None:
        """Listen no more; idempotent."""
        self._listener.close()

    def _everybody(self) -> list[_Connection]:
        return [connection for fd, connection in self._open.items() if fd != connection.pidfd]

    def _poll(self) -> select.epoll:
        assert self._epoll is not None  # noqa: S101  (serving)
        return self._epoll

    # --- a connection's life

    def _accept(self) -> None:
        until = time.monotonic() + _ACCEPT_S
        for _ in range(_ACCEPTS):
            if time.monotonic() > until:
                return
            try:
                made, _ = self._listener.accept()
            except OSError as error:
                if error.errno not in _FRIENDLY:  # no descriptor or memory left
                    logger.warning("cannot accept a connection: %s", error.strerror)
                    self._pause(1.0)
                return
            made.setblocking(False)
            self._greet(made)
        self._pause(_PAUSE_S)

    def _pause(self, seconds: float) -> None:
        self._paused_until = time.monotonic() + seconds
        self._poll().modify(self._listener, 0)

    def _greet(self, made: socket.socket) -> None:
        try:
            peer = peer_of(made)
        except OSError:
            made.close()
            return
        never = self._desk.why_never(peer)
        if never or self.count >= self._most or self._half_open[peer.uid] >= HALF_OPEN_OF_USER:
            self._turn_away(made, peer, *(("policy", never) if never else _BUSY))
            made.close()
            return
        if len(self._waiting) >= HALF_OPEN:  # who comes speaks at once: it is not the newest that has nothing to say
            self._refuse(next(iter(self._waiting.values())), *_BUSY)
        now = time.monotonic()
        accepted = Accepted(time.monotonic_ns() - self._ahead_ns, self._desk.identify(made.fileno(), peer))
        connection = _Connection(made, peer, accepted, now + HELLO_S)
        self._open[made.fileno()] = self._waiting[made.fileno()] = connection
        self._half_open[peer.uid] += 1
        self.count += 1
        self._poll().register(made, select.EPOLLIN | select.EPOLLRDHUP)
        self._read(connection)

    def _read(self, connection: _Connection) -> None:
        try:
            data, ancillary, flags, _ = connection.socket.recvmsg(MAX_HELLO + 1, CREDENTIALS_SPACE)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary, flags = b"", [], 0
        if not data:
            self._drop(connection, "closed")
        elif connection.entry is not None:
            logger.debug("a registered process said more than its hello")
            self._drop(connection, "protocol")
        elif flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            self._refuse(connection, "protocol", f"a hello has {MAX_HELLO} bytes at most, and no descriptors")
        elif sender_of(ancillary) != connection.peer.pid:
            self._refuse(connection, "protocol", "the hello is not from the process that connected")
        else:
            self._register(connection, data)

    def _register(self, connection: _Connection, data: bytes) -> None:
        number = connection.socket.fileno()
        # before the table is in force: an end after that is told, whenever it comes
        connection.pidfd = pidfd_of(connection.socket, connection.peer.pid)
        try:
            hello = decode_hello(data)
            found = self._desk.register(hello, connection.peer, number, connection.accepted)
        except ProtocolError as error:
            self._refuse(connection, "protocol", str(error)[:500])
            return
        except RefusalError as error:
            self._refuse(connection, error.answer.reason, error.answer.text)
            return
        entry, answer, table = found
        self._no_longer_waiting(connection)
        connection.entry = entry
        try:
            over = self._desk.why_over(entry, connection.peer)
            if over:
                self._drop(connection, over)
            elif _send(connection.socket, encode(answer), table):
                self._watch(connection)
            else:
                self._drop(connection, "closed")
        finally:
            table.close()

    def _watch(self, connection: _Connection) -> None:
        """Learn of the end of the process, also when another one keeps its connection open."""
        if connection.pidfd >= 0:
            self._open[connection.pidfd] = connection
            self._poll().register(connection.pidfd, select.EPOLLIN)

    def _refuse(self, connection: _Connection, reason: str, text: str) -> None:
        self._turn_away(connection.socket, connection.peer, reason, text)
        self._drop(connection, "")

    def _turn_away(self, to: socket.socket, peer: Peer, reason: str, text: str) -> None:
        """Say why, so that it is read: a socket closed with something unread in it resets the connection."""
        with contextlib.suppress(OSError):  # there may be nothing
            to.recv(1, socket.MSG_DONTWAIT)
        _send(to, encode(self._desk.refuse(reason, text)))
        left_out = self._lines.take()
        if left_out is not None:
            logger.info("a process is not registered: %s", text, extra=fields(uid=peer.uid, more=left_out))

    def _no_longer_waiting(self, connection: _Connection) -> None:
        if self._waiting.pop(connection.socket.fileno(), None) is not None:
            uid = connection.peer.uid
            self._half_open[uid] -= 1
            if not self._half_open[uid]:
                del self._half_open[uid]

    def _drop(self, connection: _Connection, reason: str) -> None:
        """Close a connection, and forget its process for `reason`."""
        self._no_longer_waiting(connection)
        if connection.entry is not None:
            self._desk.forget(connection.entry, reason)
        for fd in (connection.socket.fileno(), connection.pidfd):
            self._open.pop(fd, None)
        connection.socket.close()  # which takes it out of the epoll set, too
        if connection.pidfd >= 0:
            with contextlib.suppress(OSError):
                self._poll().unregister(connection.pidfd)
            os.close(connection.pidfd)
            connection.pidfd = -1
        self.count -= 1


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _send(to: socket.socket, packet: bytes, table: Table | None = None) -> bool:
    """Send one packet without waiting; False when it could not be."""
    rights = []
    if table is not None:
        fds = array.array("i", [table.slots.fd, table.lines.fd])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
    try:
        to.sendmsg([packet], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True
