# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a Unix socket: as the kernel says, never as the peer does."""

from __future__ import annotations

import logging
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.agent.registry_policy import Peer

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger("ebpftrace.agent.registry")

# asm-generic/socket.h; Python has no names for these two
_SO_PEERGROUPS, _SO_PEERPIDFD = 59, 77
_CREDENTIALS = struct.Struct("=iII")
_MAX_GROUPS = 256  # Python asks for 1024 bytes at most


def peer_of(connection: socket.socket) -> Peer:
    """Return user and groups of the process that connected, as they were then.

    Raises:
        OSError: the connection is over.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    groups = _groups(connection)
    return Peer(pid, uid, (gid, *(groups or ())), all_groups=groups is not None)


def _groups(connection: socket.socket) -> tuple[int, ...] | None:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS * 4)
    except OSError as error:  # ERANGE: more than so many
        logger.debug("the supplementary groups of a peer are not known: %s", error)
        return None
    return struct.unpack(f"={len(raw) // 4}I", raw)


CREDENTIALS_SPACE = socket.CMSG_LEN(_CREDENTIALS.size)
"""Bytes for the sender's credentials, and none for descriptors: the kernel closes those that are sent."""


def sender_of(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    """Return the id of the process that sent a packet, in this pid namespace; None when the kernel did not say."""
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(content) == _CREDENTIALS.size:
            return int(_CREDENTIALS.unpack(content)[0])
    return None


def cgroups_of(pid: int) -> tuple[str, ...]:
    """Return the paths of a process's cgroups; none when it is not visible here."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text(errors="replace") if pid else ""
    except OSError:
        return ()
    return tuple(line.split(":", 2)[2] for line in text.splitlines() if line.count(":") >= 2)


def pidfd_of(connection: socket.socket, pid: int) -> int:
    """Return a descriptor that becomes readable when the peer ends; -1 where there is none to be had.

    Args:
        connection: to it.
        pid: of it, for kernels that do not give the descriptor with the socket; 0 = not known.
    """
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
        return int(struct.unpack("=i", raw)[0])
    except OSError as error:
        logger.debug("no SO_PEERPIDFD: %s", error.strerror)
    try:
        return os.pidfd_open(pid) if pid > 0 else -1
    except OSError as error:  # it has ended, which the connection will tell
        logger.debug("no pidfd: %s", error.strerror)
        return -1
