# SPDX-License-Identifier: Apache-2.0
"""Who may register with the agent, how often, and how many tables count for whom."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from ebpftrace.agent.registry_limits import Accounts, Lines, Quotas, Rates
from ebpftrace.agent.registry_pins import Owner
from ebpftrace.agent.registry_policy import Peer, Policy, Rule
from ebpftrace.agent.registry_tables import Ids
from ebpftrace.errors import ConfigError

SOMEBODY = Peer(pid=7, uid=1000, gids=(1000, 27), cgroups=("/", "/system.slice/web.service"))


def rule(uids=(), gids=(), cgroups=()):
    """A rule, as options say it."""
    return Rule.parse("allow", uids, gids, cgroups)


@pytest.mark.parametrize(
    ("made", "matches"),
    [
        (rule(), False),
        (rule(uids=["1000"]), True),
        (rule(uids=["1001"]), False),
        (rule(uids=["*"]), True),
        (rule(gids=["27"]), True),
        (rule(gids=["28"]), False),
        (rule(cgroups=["*"]), True),
        (rule(cgroups=["/system.slice/*"]), True),
        (rule(cgroups=["/system.slice/web.service"]), True),
        (rule(cgroups=["/system.slice"]), False),
    ],
)
def test_rule(made, matches):
    """A rule matches by user, by any group, or by the whole path of a cgroup."""
    assert matches == made.matches(SOMEBODY)


def test_names():
    """Users and groups are named, too."""
    assert Rule(frozenset({0}), frozenset({0})) == rule(uids=["root"], gids=["root"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"uids": ["no-such-user"]}, "--allow-uid 'no-such-user': there is no user"),
        ({"gids": ["no-such-group"]}, "--allow-gid 'no-such-group': there is no group"),
        ({"cgroups": ["system.slice"]}, "begins with a slash"),
    ],
)
def test_mistakes(options, says):
    """What can match nobody is a mistake, and said."""
    with pytest.raises(ConfigError, match=says):
        rule(**options)


def test_policy():
    """What is denied is denied, whatever allows it; root and the agent's user are allowed unless denied."""
    root, own = Peer(1, 0, (0,)), Peer(1, os.geteuid(), (0,))

    assert "" == Policy().why_not(root)
    assert "" == Policy().why_not(own)
    assert "--allow-uid 1000" in Policy().why_not(SOMEBODY)
    assert "" == Policy(rule(gids=["27"])).why_not(SOMEBODY)
    assert "is denied" in Policy(rule(uids=["*"]), rule(gids=["27"])).why_not(SOMEBODY)
    assert "is denied" in Policy(deny=rule(uids=["0"])).why_not(root)


def test_policy_unknown():
    """What cannot be read of a process may be what is denied."""
    nameless = Peer(0, 1000, (1000,))
    groupless = Peer(7, 1000, (1000,), ("/",), all_groups=False)

    assert "--deny-cgroup" in Policy(rule(uids=["*"]), rule(cgroups=["/user.slice*"])).why_not(nameless)
    assert "--deny-gid" in Policy(rule(uids=["*"]), rule(gids=["27"])).why_not(groupless)
    assert "" == Policy(rule(uids=["*"])).why_not(nameless)
    assert "" == Policy(rule(uids=["*"])).why_not(groupless)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Policy(), "is not allowed"),
        (Policy(rule(uids=["1000"])), ""),
        (Policy(rule(cgroups=["/system.slice/*"])), ""),
        (Policy(rule(cgroups=["/system.slice/*"]), rule(uids=["1000"])), "is denied"),
        (Policy(rule(uids=["1000"]), rule(cgroups=["/user.slice*"])), ""),
        (Policy(rule(uids=["1001"]), rule(cgroups=["/user.slice*"])), "is not allowed"),
    ],
)
def test_policy_early(policy, says):
    """Users that are refused whatever their cgroup is are refused before they say anything."""
    why = policy.why_never(replace(SOMEBODY, cgroups=()))

    assert bool(says) == bool(why)
    assert says in why


class Clock:
    """A clock that is set."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        """What it shows."""
        return self.now


def test_rate():
    """A user may register 64 processes at once and then ten a second; another user is not concerned."""
    clock = Clock()
    rates = Rates(clock)

    assert [True] * 64 + [False] == [rates.take(1) for _ in range(65)]
    assert rates.take(2)
    clock.now += 0.35
    assert [True, True, True, False] == [rates.take(1) for _ in range(4)]


def test_users_are_bounded():
    """However many users there are, what is remembered of them is bounded, and gone when they were quiet."""
    clock = Clock()
    rates = Rates(clock)
    taken = [rates.take(uid) for uid in range(10_000)]
    remembered = len(rates._buckets)
    clock.now += 60

    assert (4096, 4096) == (sum(taken), remembered)
    assert rates.take(20_000)
    assert 1 == len(rates._buckets)


def test_accounts():
    """A table counts from when it is given until the kernel has neither its slots nor its lines any more."""
    held = {1, 2, 3, 11, 12, 13}
    accounts = Accounts(Quotas(tables=3, tables_of_user=2), lambda: held, Clock())
    accounts.add(Ids(1, 11), 1000)
    accounts.add(Ids(2, 12), 1000)

    assert "quota" == accounts.why_not(1000)[0]
    assert "" == accounts.why_not(1001)[0]
    accounts.add(Ids(3, 13), 1001)
    assert "full" == accounts.why_not(1002)[0]
    accounts.retire(Ids(1, 11))
    assert "quota" == accounts.why_not(1000)[0]
    assert (3, 1) == (accounts.tables, accounts.retired)
    held.remove(1)
    assert "quota" == accounts.why_not(1000)[0]
    held.remove(11)
    assert "" == accounts.why_not(1000)[0]
    assert (2, 0) == (accounts.tables, accounts.retired)


def test_accounts_by_time():
    """Where the kernel does not tell, a table that is out of force counts for ten minutes."""
    clock = Clock()
    accounts = Accounts(Quotas(tables=3, tables_of_user=1), lambda: None, clock)
    accounts.add(Ids(1, 11), 1000)
    accounts.retire(Ids(1, 11))

    assert "quota" == accounts.why_not(1000)[0]
    clock.now += 601
    assert "" == accounts.why_not(1000)[0]


def test_pin_name():
    """A pinned table's name does not tell its token."""
    token = "61d0" * 8
    name = Owner(7, 123, 1000, token).name

    assert name.startswith("7-123-1000-")
    assert token not in name
    assert name != Owner(7, 123, 1000, "0" * 32).name


def test_lines():
    """Whoever is refused a thousand times makes twenty lines of the log, and one later that says how many more."""
    clock = Clock()
    lines = Lines(clock)
    taken = [lines.take() for _ in range(1000)]
    clock.now += 10

    assert [0] * 20 + [None] * 980 == taken
    assert 980 == lines.take()
    assert 0 == lines.take()
