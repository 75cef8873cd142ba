# SPDX-License-Identifier: Apache-2.0
"""Who is registered, and the decision about who wants to be."""

from __future__ import annotations

import logging
import os
import secrets
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace._version import version
from ebpftrace.agent.logs import fields
from ebpftrace.agent.registry_kernel import Identity
from ebpftrace.agent.registry_limits import Accounts, Rates
from ebpftrace.agent.registry_peer import cgroups_of
from ebpftrace.agent.registry_pins import Owner
from ebpftrace.agent.registry_tables import SLOTS, Table, Tables
from ebpftrace.agent.snapshot import FORGOTTEN_REASONS, REFUSED_REASONS
from ebpftrace.context.registration import PROTOCOL, Hello, Refused, Welcome
from ebpftrace.errors import BpfError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ebpftrace.agent.registry_kernel import RegistryKernel
    from ebpftrace.agent.registry_limits import Quotas
    from ebpftrace.agent.registry_pins import Pins
    from ebpftrace.agent.registry_policy import Peer, Policy
    from ebpftrace.agent.registry_tables import Ids
    from ebpftrace.programs.core import Core

logger = logging.getLogger("ebpftrace.agent.registry")

_TOKEN_BYTES = 16
_TIDY_FOR_ROOM = 8  # tables; each holds up all others for tens of ms
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # linux/proc_ns.h: PROC_PID_INIT_INO


class RefusalError(Exception):
    """An application is not registered.

    Args:
        reason: one of `REFUSED_REASONS`.
        text: what it means, for the application's log.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.answer = Refused(reason, text)


@dataclass(slots=True)
class Registered:
    """A process with a table in force."""

    owner: Owner
    table: Ids
    connection: int
    accepted_ns: int
    exec_id: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """How a connection was when it was accepted.

    Args:
        when_ns: by CLOCK_MONOTONIC.
        identity: of the process at the other end; None = not known.
    """

    when_ns: int
    identity: Identity | None


class Desk:
    """Registers processes and forgets them.

    Args:
        policy: who may.
        quotas: how many.
        core: owner of the shared maps.
        kernel: knows who is at a socket's other end.
        pins: keeps tables over a restart; None = nothing does.

    Attributes:
        programs: those that act, by name, and their bits.
        registered: registrations so far.
        refused: by reason.
        forgotten: by reason.
        drop_earlier: called with what is registered of a process that registers once more.
    """

    def __init__(self, policy: Policy, quotas: Quotas, core: Core, kernel: RegistryKernel, pins: Pins | None) -> None:
        self.programs: Mapping[str, int] = {}
        self.registered = 0
        self.refused = Counter(dict.fromkeys(REFUSED_REASONS, 0))
        self.forgotten = Counter(dict.fromkeys(FORGOTTEN_REASONS, 0))
        self.accounts = Accounts(quotas, kernel.held)
        self._policy = policy
        self._tables = Tables(core)
        self._kernel = kernel
        self._pins = pins
        self._rates = Rates()
        self._by_tgid: dict[int, Registered] = {}
        self.sees_all = _same_ids(core)
        self.drop_earlier: Callable[[Registered], None] = lambda entry: self.forget(entry, "replaced")

    @property
    def count(self) -> int:
        """How many processes are registered."""
        return len(self._by_tgid)

    def find(self, tgid: int) -> Registered | None:
        """Return a process that is registered."""
        return self._by_tgid.get(tgid)

    def refuse(self, reason: str, text: str) -> Refused:
        """Count a refusal and return the answer."""
        self.refused[reason] += 1
        return Refused(reason, text)

    def register(
        self, hello: Hello, peer: Peer, connection: int, accepted: Accepted
    ) -> tuple[Registered, Welcome, Table]:
        """Give the process at the other end of a connection a table, and put that in force.

        Args:
            hello: what it said.
            peer: who it is.
            connection: the socket.
            accepted: when it was accepted.

        Returns:
            What is registered, the answer, and the table, which is the caller's to close.

        Raises:
            RefusalError: it gets none.
        """
        self._check(hello, peer)
        found = self._same(connection, peer, accepted.identity)
        owner = Owner(found.tgid, found.started_ns, peer.uid, hello.token)
        earlier = self._by_tgid.get(owner.tgid)
        if earlier is not None:
            self.drop_earlier(earlier)
        kept = self._pins.take(owner) if self._pins is not None and hello.token else None
        try:
            if kept is None:
                owner = replace(owner, token=secrets.token_hex(_TOKEN_BYTES))
                self._check_room(peer)
            table = Table.make(kept)
        except BpfError as error:
            raise RefusalError("failed", f"the agent could not make a context table: {error}") from error
        try:
            self._tables.put(owner.tgid, table)
        except BpfError as error:
            table.close()
            raise RefusalError("failed", f"the agent could not enter a context table: {error}") from error
        if self._pins is not None and kept is None:
            self._pins.keep(owner, table)
        entry = Registered(owner, table.ids, connection, accepted.when_ns, found.exec_id)
        self._by_tgid[owner.tgid] = entry
        self.accounts.add(table.ids, peer.uid)
        self.registered += 1
        logger.info(
            "a process registered",
            extra=fields(tgid=owner.tgid, uid=peer.uid, kept=kept is not None, library=_plain(hello.library)),
        )
        return entry, Welcome(PROTOCOL, owner.token, dict(self.programs), kept is not None, version[:64]), table

    def why_never(self, peer: Peer) -> str:
        """Return why a process need not say its hello; "" when it does."""
        return self._policy.why_never(peer)

    def _check(self, hello: Hello, peer: Peer) -> None:
        if hello.protocol != PROTOCOL or hello.slots != SLOTS:
            raise RefusalError(
                "version",
                f"the agent ({version}) speaks protocol {PROTOCOL} with {SLOTS} slots, this library protocol "
                f"{hello.protocol} with {hello.slots}: use the same version of both",
            )
        reason = self._policy.why_not(replace(peer, cgroups=cgroups_of(peer.pid)))
        if reason:
            raise RefusalError("policy", reason)
        if not self._rates.take(peer.uid):
            raise RefusalError("rate", f"user {peer.uid} registers processes too fast; this one tries again")

    def identify(self, connection: int, peer: Peer) -> Identity | None:
        """Return which process connected, and what it is now; None when that cannot be known."""
        try:
            return self._kernel.identify(connection)
        except BpfError as error:
            logger.debug("the kernel does not tell who is at a socket: %s", error)
        return Identity(peer.pid, 0, 0, changed=False) if _in_first_pid_namespace() else None

    def _same(self, connection: int, peer: Peer, accepted: Identity | None) -> Identity:
        """The process that connected, still with the binary and the privileges that it connected with."""
        found = self.identify(connection, peer)
        if found is None:
            raise RefusalError(
                "failed", "this kernel does not tell the agent, which runs in a pid namespace, which process this is"
            )
        if found.tgid <= 0:
            raise RefusalError("gone", "the process that connected has ended")
        if found.changed or found != accepted:
            raise RefusalError(
                "gone", "the process that connected has executed another binary, or has other privileges, since"
            )
        return found

    def why_over(self, entry: Registered, peer: Peer) -> str:
        """Return why a process is to be forgotten, one of `FORGOTTEN_REASONS`; "" while it runs the same binary.

        For an exec before the table was in force, of which the kernel does not tell, and for what it could not tell.
        """
        found = self.identify(entry.connection, peer)
        if found is None:
            return ""
        if found.tgid <= 0:
            return "exited"
        return "" if found.exec_id == entry.exec_id else "exec"

    def executed(self, tgid: int) -> None:
        """A process executed another binary, by which others may have lost their bit."""
        try:
            self._tables.refresh(tgid)
        except BpfError as error:
            logger.error("processes with ids like %d may have lost their tables: %s", tgid, error)  # noqa: TRY400

    def executed_unknown(self) -> None:
        """Some processes did, and it is not known which."""
        try:
            self._tables.refresh_all()
        except BpfError as error:
            logger.error("processes may have lost their tables: %s", error)  # noqa: TRY400

    def tidy(self, number: int) -> bool:
        """Take out up to so many tables that are out of force; return whether there are more."""
        try:
            self._tables.take_out(number)
        except BpfError as error:
            logger.error("a table that is out of force stays entered: %s", error)  # noqa: TRY400
        return self._tables.pending > 0

    def _check_room(self, peer: Peer) -> None:
        if self.accounts.why_not(peer.uid)[0]:
            self.tidy(_TIDY_FOR_ROOM)
        reason, text = self.accounts.why_not(peer.uid)
        if reason:
            raise RefusalError(reason, text)

    def leave(self, entry: Registered, *, keep: bool) -> None:
        """The agent ends: forget a process, and leave its table in force, as each removal takes the kernel its time.

        Args:
            entry: the process.
            keep: leave the table pinned, for an agent after this one.
        """
        del self._by_tgid[entry.owner.tgid]
        self.forgotten["ended"] += 1
        if self._pins is not None and not keep:
            self._pins.drop(entry.owner)

    def forget(self, entry: Registered, reason: str) -> None:
        """Put a process's table out of force.

        Args:
            entry: the process.
            reason: one of `FORGOTTEN_REASONS`.
        """
        if self._by_tgid.get(entry.owner.tgid) is not entry:
            return  # another table of the same process replaced it
        del self._by_tgid[entry.owner.tgid]
        self.forgotten[reason] += 1
        try:
            self._tables.remove(entry.owner.tgid)
        except BpfError as error:
            logger.error("the table of process %d stays in force: %s", entry.owner.tgid, error)  # noqa: TRY400
        if self._pins is not None:
            self._pins.drop(entry.owner)
        self.accounts.retire(entry.table)
        logger.info("a process is forgotten", extra=fields(tgid=entry.owner.tgid, reason=reason))


def _plain(text: str) -> str:
    """What an application says of itself, fit for a log."""
    return "".join(each for each in text if each.isalnum() or each in ".+-_") or "unknown"


def _in_first_pid_namespace() -> bool:
    """Are the ids of SO_PEERCRED the kernel's?"""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False


def _same_ids(core: Core) -> bool:
    """Are this process's ids the kernel's: is it in the first pid namespace?"""
    try:
        return core.object.run_once("identify") == os.getpid()
    except BpfError:
        return False
