# SPDX-License-Identifier: Apache-2.0
"""Applications that cannot load BPF get their context table here: docs/reference/registration.md.

    registry = Registry(options, core)      # bound and loaded: with all privileges, before threads
    registry.start({"sched": 1})            # answers, by one thread, which needs CAP_BPF

One thread serves all connections and waits for none of them: a packet is read whole or not at all, an answer fits the
socket's buffer or the connection is closed. A process is registered while its connection is open, until it ends, and
until it executes another binary.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.agent.logs import fields
from ebpftrace.agent.registry_connections import Connections
from ebpftrace.agent.registry_desk import Desk
from ebpftrace.agent.registry_kernel import RegistryKernel
from ebpftrace.agent.registry_limits import Quotas
from ebpftrace.agent.registry_pins import DEFAULT_PIN_DIR, Pins
from ebpftrace.agent.registry_policy import Policy
from ebpftrace.agent.registry_socket import listen, remove
from ebpftrace.agent.snapshot import RegistrySnapshot
from ebpftrace.context.registration import DEFAULT_SOCKET
from ebpftrace.errors import UnsupportedError
from ebpftrace.kernel.ringbuf import name_thread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ebpftrace.programs.core import Core

logger = logging.getLogger("ebpftrace.agent.registry")

_TICK_S = 0.5
_RECLAIM_S = 60.0
"""How long tables of an agent before this one wait for their processes."""

_SETTLE_S = 5.0
_JOIN_S = 5.0


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """What the command line says.

    Args:
        path: of the socket.
        pin_dir: where tables are kept over a restart of the agent; "" = nowhere.
        keep_pins: also when the agent is ended by a signal.
        policy: who may register.
        quotas: how many.
    """

    path: str = DEFAULT_SOCKET
    pin_dir: str = DEFAULT_PIN_DIR
    keep_pins: bool = False
    policy: Policy = field(default_factory=Policy)
    quotas: Quotas = field(default_factory=Quotas)


class Registry:
    """The agent's registration of applications.

    Args:
        options: of the command line.
        core: owner of the maps that all programs share.

    Raises:
        CommandError: the socket cannot be had.
        EbpftraceError: the kernel refuses the registry's object.
    """

    def __init__(self, options: RegistryOptions, core: Core) -> None:
        self._options = options
        self._path = Path(options.path).absolute()
        self._listener = listen(self._path)
        self._inode = self._path.stat().st_ino
        try:
            self._kernel = RegistryKernel(core)
        except BaseException:
            self._listener.close()
            remove(self._path, self._inode)
            raise
        self._pins = _pins(options.pin_dir)
        self._desk = Desk(options.policy, options.quotas, core, self._kernel, self._pins)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._connections = Connections(self._listener, self._desk)
        self._programs: Mapping[str, int] = {}
        self._stopping = self._untidy = False
        self._missed = 0
        self._thread: threading.Thread | None = None
        self._reclaim_until = self._settle_at = self._last_round_at = 0.0

    @property
    def writes(self) -> list[Path]:
        """The directories in which it makes and removes files."""
        return [self._path.parent, *([self._pins.directory] if self._pins is not None else [])]

    # --- from the main thread

    def start(self, programs: Mapping[str, int]) -> None:
        """Answer, by a thread of its own.

        Args:
            programs: those that act, and each one's bit of a context's mask.
        """
        self._programs = self._desk.programs = dict(programs)
        self._reclaim_until = time.monotonic() + _RECLAIM_S
        if self._pins is not None and self._desk.sees_all:
            self._pins.drop_dead()
        self._thread = threading.Thread(target=self._run, name="ebpftrace-registry", daemon=True)
        self._thread.start()
        logger.info(
            "applications can register",
            extra=fields(
                socket=self._path, pins=self._pins.directory if self._pins is not None else "none",
                waiting=self._pins.unclaimed if self._pins is not None else 0,
            ),
        )  # fmt: skip

    def set_programs(self, programs: Mapping[str, int]) -> None:
        """Tell all applications which programs act from now on."""
        self._programs = dict(programs)
        self._awaken()

    def _awaken(self) -> None:
        os.eventfd_write(self._wake, 1)

    def snapshot(self) -> RegistrySnapshot:
        """Return its counters; from any thread."""
        accounts = self._desk.accounts
        return RegistrySnapshot(
            processes=self._desk.count,
            connections=self._connections.count,
            tables=accounts.tables,
            retired=accounts.retired,
            registered=self._desk.registered,
            refused=dict(self._desk.refused),
            forgotten=dict(self._desk.forgotten),
            last_round_at=self._last_round_at,
        )

    def close(self, timeout_s: float = _JOIN_S) -> None:
        """Close all connections, and remove what it has made; idempotent. Tables end with the core's maps.

        Args:
            timeout_s: the longest that its thread is waited for.
        """
        if self._stopping:
            return
        self._stopping = True
        if self._thread is not None:
            self._awaken()
            self._thread.join(timeout_s)
            if self._thread.is_alive():  # it has the descriptors: they end with the process, as does the thread
                logger.error("the registration of applications is stuck; its socket %s stays", self._path)
                return
        self._connections.close()
        remove(self._path, self._inode)
        if self._pins is not None and self._thread is not None and not self._options.keep_pins:
            self._pins.drop_unclaimed()
        os.close(self._wake)
        self._kernel.close()

    # --- its own thread

    def _run(self) -> None:
        name_thread("ebt-registry")
        with select.epoll() as epoll:
            epoll.register(self._wake, select.EPOLLIN)
            epoll.register(self._kernel.ring.fd, select.EPOLLIN)
            self._connections.serve(epoll)
            while not self._stopping:
                try:
                    self._round(epoll)
                except Exception:  # one application's trouble must not be the others'
                    logger.exception("a round of the registry failed")
                    time.sleep(_TICK_S)
            self._connections.leave(keep=self._options.keep_pins)

    def _round(self, epoll: select.epoll) -> None:
        self._last_round_at = time.time()
        ready = epoll.poll(0 if self._untidy else _TICK_S)
        self._look_for_execs()  # first: who has a new binary registers anew after that
        for fd, _ in ready:
            if self._stopping:
                return
            if fd == self._wake:
                os.eventfd_read(self._wake)
                self._publish_programs()
            elif fd != self._kernel.ring.fd:
                self._connections.handle(fd)
                self._look_for_execs()  # what was handled may have taken long
        self._connections.expire()
        self._untidy = self._desk.tidy(1)
        self._housekeeping()

    def _look_for_execs(self) -> None:
        while found := self._kernel.execs():
            for tgid, when_ns in found:
                self._connections.executed(tgid, when_ns)
        missed = self._kernel.missed()
        if missed != self._missed:
            self._missed = missed
            self._connections.executed_unknown()

    def _publish_programs(self) -> None:
        if self._programs != self._desk.programs:
            self._desk.programs = self._programs
            self._connections.tell_programs()

    def _housekeeping(self) -> None:
        now = time.monotonic()
        if self._pins is not None and self._pins.unclaimed and now > self._reclaim_until:
            self._pins.drop_unclaimed()
        if now > self._settle_at:
            self._settle_at = now + _SETTLE_S
            self._connections.check_unwatched()
            self._desk.accounts.settle()


def _pins(directory: str) -> Pins | None:
    if not directory:
        return None
    try:
        return Pins(Path(directory).absolute())
    except UnsupportedError as error:
        logger.info("applications' tables end with the agent: %s", error)
        return None
