# SPDX-License-Identifier: Apache-2.0
"""The socket that the agent listens on for applications."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import stat
from typing import TYPE_CHECKING

from ebpftrace.errors import CommandError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("ebpftrace.agent.registry")

_SO_PASSRIGHTS = 83  # asm-generic/socket.h; Python has no name for it
_BACKLOG = 128
_DIRECTORY_MODE, _SOCKET_MODE = 0o755, 0o666  # the policy says who may register, not the mode of a file


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at `path`, in place of one that an agent before this one left there.

    Raises:
        CommandError: somebody listens there, it is something else, or no permission.
    """
    try:
        if not path.parent.is_dir():
            path.parent.mkdir()
            path.parent.chmod(_DIRECTORY_MODE)  # whatever the umask
        _clear(path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            # connections inherit it: who sends a hello has to be who connected
            made.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            _refuse_descriptors(made)
            made.bind(str(path))
            path.chmod(_SOCKET_MODE)
            made.listen(_BACKLOG)
        except BaseException:
            made.close()
            raise
    except OSError as error:
        raise CommandError(
            f"cannot listen for applications on {path}: {error.strerror or error}; --socket names another place, or '' "
            "for none"
        ) from error
    return made


def _refuse_descriptors(listener: socket.socket) -> None:
    """Have the kernel refuse descriptors at the sender's; connections inherit it.

    Else it closes them in the agent's thread, which waits as long as the sender wishes: SO_LINGER of a TCP socket.
    """
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        logger.info(
            "this kernel cannot refuse descriptors that applications send (SO_PASSRIGHTS, 6.16): closing them can hold "
            "up registrations"
        )


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as attempt:
        result = attempt.connect_ex(str(path))
    if result != errno.ECONNREFUSED:  # connected, or its queue is full
        raise OSError(errno.EADDRINUSE, "another agent listens there, or something else does")
    path.unlink()


def remove(path: Path, inode: int) -> None:
    """Remove the socket's file, unless it is a successor's by now."""
    with contextlib.suppress(OSError):  # gone with its directory, which the service manager removes
        if path.lstat().st_ino == inode:
            path.unlink()
