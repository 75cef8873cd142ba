# SPDX-License-Identifier: Apache-2.0
"""Telling the service manager how the agent is: systemd's notification protocol.

    notifier = Notifier.from_environment()
    notifier.ready("4 programs")
    while running:
        if reader_lives:
            notifier.keep_alive()

Datagrams to the socket in NOTIFY_SOCKET; without that variable nothing happens.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger("ebpftrace.agent")


class Notifier:
    """Sends notifications; a failed one is counted and never an error of the agent.

    Args:
        address: of the socket; one that begins with "@" is in the abstract name space; "" = send nothing.
        watchdog_s: the manager expects a sign of life this often; 0.0 = it does not.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self.watchdog_s = watchdog_s
        self._next_sign = 0.0
        self.sent = 0
        self.failed = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Notifier:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        if address and address[0] not in "/@":
            logger.warning("NOTIFY_SOCKET=%r is ignored: it is neither a path nor an abstract name", address)
            address = ""
        return cls(address, _watchdog_s(environ) if address else 0.0)

    @property
    def active(self) -> bool:
        """Is there somebody to tell?"""
        return bool(self._address)

    @property
    def abstract(self) -> bool:
        """Is the socket in the abstract name space, which a file system rule does not cover?"""
        return self._address.startswith("\0")

    def ready(self, status: str = "") -> bool:
        """The agent works; also the end of a reload."""
        self._next_sign = time.monotonic() + self.watchdog_s / 2
        return self._send("READY=1", *_status(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send(*_status(text))

    def reloading(self, status: str = "reloading") -> bool:
        """A reload begins; `ready()` ends it. The time ties this to the signal that asked for it."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}", *_status(status))

    def stopping(self, status: str = "stopping") -> bool:
        """The agent ends."""
        return self._send("STOPPING=1", *_status(status))

    def extend_timeout(self, seconds: float) -> bool:
        """Starting, reloading or stopping goes on for this long still: do not kill it before."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def keep_alive(self) -> bool:
        """Send the sign of life if it is due (at half the time); call it only when all is well, and often."""
        now = time.monotonic()
        if not self.watchdog_s or now < self._next_sign:
            return False
        self._next_sign = now + self.watchdog_s / 2
        return self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> bool:
        if not self._address:
            return False
        data = "\n".join(lines).encode()
        try:
            self._deliver(data)
        except OSError as error:
            self.failed += 1
            if self.failed == 1:
                logger.warning("the service manager cannot be told (NOTIFY_SOCKET): %s; later ones are counted", error)
            return False
        self.sent += 1
        return True

    def _deliver(self, data: bytes) -> None:
        """Send over a connection kept from the first time: rules set since, such as Landlock's, do not apply to it."""
        if self._socket is not None:
            try:
                self._socket.send(data)
            except (ConnectionError, BrokenPipeError):  # the manager has opened another one under that name
                self.close()
            else:
                return
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            fresh.settimeout(1.0)
            fresh.connect(self._address)
            fresh.send(data)
        except BaseException:
            fresh.close()
            raise
        self._socket = fresh

    def close(self) -> None:
        """Close the socket; idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _status(text: str) -> list[str]:
    return [f"STATUS={' '.join(text.split())}"] if text else []


def _watchdog_s(environ: Mapping[str, str]) -> float:
    text = environ.get("WATCHDOG_USEC", "")
    if not text or environ.get("WATCHDOG_PID", "") not in ("", str(os.getpid())):
        return 0.0
    try:
        seconds = int(text) / 1e6
    except ValueError:
        seconds = -1.0
    if seconds < 0:
        logger.warning("WATCHDOG_USEC=%r is ignored: it must be a number of microseconds", text)
        return 0.0
    return seconds
