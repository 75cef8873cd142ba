# SPDX-License-Identifier: Apache-2.0
"""Who may register with the agent."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ebpftrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_EVERYONE = "*"


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a connection.

    Args:
        pid: in the agent's pid namespace; 0 = not visible there.
        uid: effective when it connected, in the agent's user namespace.
        gids: its groups, the effective one first.
        cgroups: its cgroups' paths, of each hierarchy; empty when they cannot be read.
        all_groups: `gids` are all of them; else the supplementary ones are not known.
    """

    pid: int
    uid: int
    gids: tuple[int, ...]
    cgroups: tuple[str, ...] = ()
    all_groups: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """A set of processes.

    Args:
        uids: user ids.
        gids: group ids; a supplementary group counts.
        cgroups: patterns of paths, as a shell has them; `*` goes over slashes.
        everyone: all of them.
    """

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    cgroups: tuple[str, ...] = ()
    everyone: bool = False

    def matches(self, peer: Peer) -> bool:
        """Does the process belong to the set?"""
        return (
            self.everyone
            or peer.uid in self.uids
            or not self.gids.isdisjoint(peer.gids)
            or any(fnmatchcase(path, pattern) for path in peer.cgroups for pattern in self.cgroups)
        )

    @classmethod
    def parse(cls, option: str, uids: Sequence[str], gids: Sequence[str], cgroups: Sequence[str]) -> Rule:
        """Return what the options say.

        Args:
            option: "allow" or "deny", for messages.
            uids: numbers, names, or "*".
            gids: numbers, names, or "*".
            cgroups: patterns.

        Raises:
            ConfigError: there is no user or group of that name, or a pattern can match nothing.
        """
        everyone = _EVERYONE in (*uids, *gids, *cgroups)
        for pattern in cgroups:
            if not pattern.startswith(("/", "*")):
                raise ConfigError(f"--{option}-cgroup {pattern!r}: a cgroup's path begins with a slash")
        return cls(
            frozenset(_number(f"--{option}-uid", "user", word, _uid) for word in uids if word != _EVERYONE),
            frozenset(_number(f"--{option}-gid", "group", word, _gid) for word in gids if word != _EVERYONE),
            tuple(cgroups),
            everyone,
        )


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _number(option: str, what: str, word: str, look_up: Callable[[str], int]) -> int:
    if word.isascii() and word.isdecimal():
        return int(word)
    try:
        return look_up(word)
    except KeyError:
        raise ConfigError(f"{option} {word!r}: there is no {what} of that name; a number or * does, too") from None


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may register: those allowed, less those denied. Root and the agent's own user are allowed always.

    Args:
        allow: beside these two.
        deny: goes before `allow`, also for these two.
    """

    allow: Rule = field(default_factory=Rule)
    deny: Rule = field(default_factory=Rule)

    def why_not(self, peer: Peer) -> str:
        """Return why a process may not register; "" when it may."""
        if self.deny.cgroups and not peer.cgroups:
            return "the process's cgroups cannot be read, and the agent has the option --deny-cgroup"
        return self._why_not(peer)

    def why_never(self, peer: Peer) -> str:
        """Return why a process may not register, whatever its cgroups are; "" when that depends on them, or it may."""
        return "" if self.allow.cgroups and not self.deny.matches(peer) else self._why_not(peer)

    def _why_not(self, peer: Peer) -> str:
        if self.deny.matches(peer):
            return f"user {peer.uid} is denied by the agent's options (--deny-uid, --deny-gid, --deny-cgroup)"
        if self.deny.gids and not peer.all_groups:
            return "the process's groups cannot be read, and the agent has the option --deny-gid"
        if peer.uid in (0, os.geteuid()) or self.allow.matches(peer):
            return ""
        return (
            f"user {peer.uid} is not allowed by the agent's options: --allow-uid {peer.uid}, or --allow-gid, "
            "--allow-cgroup, would do that"
        )
