# SPDX-License-Identifier: Apache-2.0
"""The kernel side of an application that may not load BPF: the agent's.

The agent makes this process's context table and its programs make the kernel spans, which leave through the agent's
exporter. Here remains publishing into the table, and the breakdown, read from its lines.
"""

from __future__ import annotations

import _socket  # as in context.agent_link
import errno
import logging
import math
import random
import time
from typing import TYPE_CHECKING, Any

from ebpftrace.context import _publisher, own_table
from ebpftrace.context.agent_link import AgentLink, AwayError, RefusedError, Table, unreachable
from ebpftrace.context.registration import DEFAULT_SOCKET, Programs
from ebpftrace.errors import BpfError, EbpftraceError, UnsupportedError
from ebpftrace.kernel.ringbuf import name_thread
from ebpftrace.spans.clock import namespace_offset_ns
from ebpftrace.spans.green import real_thread_module

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ebpftrace.kernel.maps import Map
    from ebpftrace.runtime.loader import LoadedProgram
    from ebpftrace.settings import Settings

logger = logging.getLogger("ebpftrace")

NEVER = "none"
"""The setting `agent_socket` that rules the agent out."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0
_STEADY_S = 30.0
"""An agent that was there for less is the same outage still."""

_JOIN_S = 3.0
_START_S = 3.0


def wanted_first(settings: Settings) -> bool:
    """Is the agent to be asked before anything is tried here?"""
    return settings.agent_socket not in ("", NEVER)


def socket_path(settings: Settings) -> str:
    """Return where the agent is."""
    return settings.agent_socket if wanted_first(settings) else DEFAULT_SOCKET


def lacks_privilege(error: EbpftraceError) -> bool:
    """Would the agent help?"""
    return isinstance(error, BpfError) and error.errno in (errno.EPERM, errno.EACCES)


class AgentSide:
    """This process's registration with the agent; stands in for `KernelSide`.

    Args:
        settings: where the agent is.
        on_programs: called with the programs that act and their bits, now and when they change; the second time from
            another thread.
        on_away: called when nobody writes thread lines any more, until the next `on_programs`.

    Attributes:
        away: the agent is not there now.
        reconnects: how often it came back.
    """

    def __init__(
        self, settings: Settings, on_programs: Callable[[Mapping[str, int]], None], on_away: Callable[[], None]
    ) -> None:
        self.path = socket_path(settings)
        self.programs: list[LoadedProgram] = []
        self.failed: dict[str, EbpftraceError] = {}
        self.away = False
        self.reconnects = 0
        self._on_programs, self._on_away = on_programs, on_away
        self._bits: Mapping[str, int] = {}
        self._link: AgentLink | None = None
        self._table: Table | None = None
        self._token = ""
        self._closed = False
        threads = real_thread_module()
        self._lock = threads.allocate_lock()  # a table must not be changed while, or after, it is taken down
        self._ended = threads.allocate_lock()  # held by the thread
        self._alarm: tuple[_socket.socket, _socket.socket] | None = None
        self._insists = wanted_first(settings)
        self._pause, self._back_at = _FIRST_PAUSE_S, -math.inf
        self._told = False  # of this outage, in the log
        self._left = False

    # --- life

    def connect(self) -> None:
        """Register; or, with an agent that is named in the settings and not there yet, do so when it is.

        Raises:
            EbpftraceError: there is no agent, or it refuses for good.
        """
        until = time.monotonic() + _START_S
        while self._link is None:
            try:
                self._link = AgentLink(self.path)
            except (RefusedError, AwayError) as error:  # of a server's many workers, all start at once
                if error.soon and time.monotonic() <= until:
                    time.sleep(_FIRST_PAUSE_S * random.uniform(0.5, 1.0))  # noqa: S311  (not all at once again)
                elif self._insists and unreachable(error):
                    self._begin_away(error)
                    return
                else:
                    raise
        link = self._link
        self._token, self._table = link.welcome.token, link.table
        self._take_programs(link.welcome.programs)

    def _begin_away(self, error: EbpftraceError) -> None:
        self.away = self._told = True
        self._on_away()
        logger.warning("%s; kernel spans come when it lets this process in", error)

    def arm(self) -> None:
        """Publish into the table, and follow what the agent says from now on."""
        if self._table is None:  # until there is one
            try:
                own_table.arm()
            except OSError as error:
                raise UnsupportedError("publishing contexts", error.strerror or str(error)) from error
        else:
            _publisher.arm(self._table.slots, self._table.lines, namespace_offset_ns())
            self._table.close()
        self._alarm = _socket_pair()
        self._ended.acquire()
        real_thread_module().start_new_thread(self._follow, ())

    def bits(self) -> Mapping[str, int]:
        """Return the agent's programs and each one's bit of a context's mask."""
        return self._bits

    def ties(self) -> None:
        """Return None: the map of ties is everybody's, and whoever has its descriptor could freeze it for all."""

    def shared_map(self, name: str) -> Map:
        """Raise `UnsupportedError`: the maps that all programs share are the agent's alone."""
        raise UnsupportedError(
            f"the map {name!r}", "this process is registered with an agent, whose map it is",
            'agent_socket="none" in a process that loads programs of its own',
        )  # fmt: skip

    def close(self) -> None:
        """Leave; idempotent. Before the table is unmapped."""
        with self._lock:
            self._closed = True
            link, alarm = self._link, self._alarm
        if alarm is not None:
            alarm[0].send(b"x")
        if link is not None:
            link.end()
        # once: a thread that is stuck is not waited for again
        if alarm is not None and not self._left and self._ended.acquire(timeout=_JOIN_S):
            self._ended.release()
            for end in alarm:
                end.close()
            self._alarm = None
        self._left = True
        if link is not None:
            link.close()
        if self._table is not None:
            self._table.close()

    def forget(self) -> None:
        """In the child of a fork: let go of the descriptors; the parent stays registered."""
        for end in (self._link, self._table, *(self._alarm or ())):
            if end is not None:
                end.close()
        self._link = self._table = self._alarm = None

    def stats(self) -> dict[str, Any]:
        """Return how it stands with the agent."""
        return {"socket": self.path, "away": self.away, "reconnects": self.reconnects}

    # --- the thread that follows

    def _follow(self) -> None:
        try:
            name_thread("ebt-agent-link")
            while not self._closed:
                self._listen()
                if self._closed or not self._come_back():
                    return
        except Exception:  # what is published stays where it is
            logger.exception("the agent is followed no more, because of an error in ebpftrace")
        finally:
            self._ended.release()

    def _listen(self) -> None:
        """Do what the agent says, until the connection is over."""
        link = self._link
        while link is not None:
            try:
                said = link.wait()
            except EbpftraceError as error:
                logger.debug("the agent said something strange: %s", error)
                break
            if said is None:
                break
            if isinstance(said, Programs):
                with self._lock:
                    if not self._closed:
                        self._take_programs(said.programs)

    def _take_programs(self, programs: Mapping[str, int]) -> None:
        self._bits = dict(programs)
        self._on_programs(self._bits)

    def _come_back(self) -> bool:
        """Register again, when there is an agent again; False when that is not to be."""
        if not self.away:
            self.away = True
            self._on_away()
            if time.monotonic() - self._back_at >= _STEADY_S:
                self._pause, self._told = _FIRST_PAUSE_S, False
                self._tell()
        while not self._wait(self._pause * random.uniform(0.5, 1.0)):  # noqa: S311  (applications not all at once)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE_S)
            try:
                link = AgentLink(self.path, self._token)
            except EbpftraceError as error:
                if not unreachable(error):
                    logger.warning("the agent is back, and kernel tracing stays off: %s", error)
                    return False
                self._tell()  # one that only comes and goes is not told of each time
                continue
            try:
                return self._adopt(link)
            except OSError as error:  # no memory: what is published stays where it is
                logger.warning("the agent's table cannot be mapped: %s", error.strerror)
        return False

    def _tell(self) -> None:
        """Say once of an outage that it began."""
        if not self._told:
            self._told = True
            logger.warning(
                "the agent at %s went away; publishing goes on, kernel spans come when it is back", self.path
            )

    def _wait(self, seconds: float) -> bool:
        """Wait; True when it is over meanwhile."""
        assert self._alarm is not None  # noqa: S101  (the thread closes none)
        self._alarm[1].settimeout(seconds)
        try:
            self._alarm[1].recv(1)
        except TimeoutError:
            return self._closed
        return True

    def _adopt(self, link: AgentLink) -> bool:
        with self._lock:
            if self._closed:
                link.table.close()
                link.close()
                return False
            # also when the slots are the same: threads begin new accounts, and spans that span the gap get none
            try:
                _publisher.rearm(link.table.slots, link.table.lines, namespace_offset_ns())
            except OSError:
                link.close()
                raise
            finally:
                link.table.close()
            if self._link is not None:
                self._link.close()
            self._link, self._token = link, link.welcome.token
            self._take_programs(link.welcome.programs)
        self.away = False
        self.reconnects += 1
        if self._told:
            logger.warning("the agent at %s is back", self.path)
        self._told, self._back_at = False, time.monotonic()
        return True


def _socket_pair() -> tuple[_socket.socket, _socket.socket]:
    first, second = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    return first, second
