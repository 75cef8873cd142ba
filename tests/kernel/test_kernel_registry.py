# SPDX-License-Identifier: Apache-2.0
"""Registration of applications that may not load BPF programs: who is given what, and when it is taken back."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import machine
import pytest
from registrar import Child, ask, connect, hello, mounted_bpf_fs, once, registrar

from ebpftrace.agent import registry_desk
from ebpftrace.agent.registry_limits import Quotas
from ebpftrace.agent.registry_pins import Pins
from ebpftrace.agent.registry_tables import Table, Tables
from ebpftrace.errors import BpfError, CommandError, UnsupportedError
from ebpftrace.programs.core import Core


def registered(path, token=""):
    """Register; then do as told: leave the connection, end."""
    connection = connect(path)
    answer, fds = ask(connection, hello(token))
    yield answer | {"fds": len(fds)}
    connection.close()
    yield len(fds)


def test_life():
    """A process's table is in force from its welcome until it closes the connection, also while it keeps the table."""
    with registrar() as agent, Child(registered, agent.path) as child:
        welcome = child.next()
        during = (agent.in_force(), agent.bit(child.pid))
        assert child.next() == 2
        machine.until(lambda: agent.snapshot().connections == 0)
        after = (agent.in_force(), agent.bit(child.pid))
        snapshot = agent.snapshot()

        assert ({child.pid}, 1) == during
        assert (set(), 0) == after
        assert ("welcome", {"sched": 2}, False, 2) == tuple(welcome[key] for key in ("type", "programs", "kept", "fds"))
        assert (1, 1, 0, 0) == (
            snapshot.registered, snapshot.forgotten["closed"], snapshot.processes, snapshot.connections
        )  # fmt: skip


def namespaced(path):
    """Register as process 1, and stay."""
    connection = connect(path)
    ask(connection, hello())
    yield os.getpid()
    connection.close()


def test_pid_namespace():
    """What is in force for a process that calls itself 1 is in force for that process, not for the machine's first."""
    with registrar() as agent, Child(namespaced, agent.path, pid_namespace=True) as child:
        seen = child.next()

        assert 1 == seen
        assert {child.pid} == agent.in_force()


def test_agent_in_pid_namespace():
    """An agent in a pid namespace enters processes by the kernel's ids, which it does not see itself."""

    def agent_inside():
        with registrar() as agent, Child(registered, agent.path, uid=0) as child:
            child.next()
            yield [os.getpid(), child.pid, sorted(agent.in_force()), agent.core.object.run_once("identify")]

    with Child(agent_inside, uid=0, pid_namespace=True) as child:
        own, inner, in_force, identity = child.next()

        assert 1 == own
        assert child.pid == identity
        assert len(in_force) == 1
        assert inner < 10 < in_force[0]


@pytest.mark.parametrize(("inside", "expected"), [(False, "welcome"), (True, "failed")], ids=["outside", "inside"])
def test_identity_unknown(monkeypatch, inside, expected):
    """Where the kernel does not tell who connected, SO_PEERCRED does, but not in a pid namespace: it has other ids."""

    def fails(_):
        raise BpfError("run", errno=errno.EOPNOTSUPP)

    monkeypatch.setattr(registry_desk, "_in_first_pid_namespace", lambda: not inside)
    with registrar() as agent, Child(registered, agent.path) as child:
        agent.registry._kernel.identify = fails
        answer = child.next()
        in_force = agent.in_force()

        assert expected == answer.get("reason", answer["type"])
        assert (set() if inside else {child.pid}) == in_force


def test_pid_namespace_known():
    """The agent knows whether it is in a pid namespace of its own."""

    def inside():
        yield registry_desk._in_first_pid_namespace()

    with Child(inside, uid=0, pid_namespace=True) as child:
        there = child.next()

    assert not there


def test_shared_bit():
    """Processes that share a bit of `publishers` keep it until the last of them is gone."""
    core = Core()
    core.load()
    tables, table = Tables(core), Table.make()
    first, second = 70, 70 + 65536

    def bit():
        return int.from_bytes(core.map("publishers").lookup((1).to_bytes(4, "little")), "little") >> 6 & 1

    tables.put(first, table)
    tables.put(second, table)
    tables.remove(first)
    one_left = bit()
    tables.remove(first)
    again = bit()
    tables.remove(second)
    none_left = bit()
    table.close()
    core.object.close()

    assert (1, 1, 0) == (one_left, again, none_left)


def test_pending():
    """A process that is forgotten is out of force at once, also if another with its bit comes; the rest comes later."""
    core = Core()
    core.load()
    tables, table = Tables(core), Table.make()
    first, second = 70, 70 + 65536

    def entered():
        return {int.from_bytes(key, "little") for key in core.map("processes")}

    tables.put(first, table)
    tables.remove(first)
    removed = (core.map("publishers").lookup((1).to_bytes(4, "little")), entered(), tables.pending)
    tables.put(second, table)
    put = (entered(), tables.pending)
    tables.remove(second)
    tables.take_out(1)
    in_the_end = (entered(), tables.pending)
    table.close()
    core.object.close()

    assert (bytes(8), {first}, 1) == removed
    assert ({second}, 0) == put
    assert (set(), 0) == in_the_end


def test_refresh():
    """A bit that was lost by the exec of a process which shares its word is set again."""
    core = Core()
    core.load()
    tables, table = Tables(core), Table.make()
    word = (1).to_bytes(4, "little")
    tables.put(70, table)
    core.map("publishers").update(word, bytes(8))
    tables.refresh(71)
    one = core.map("publishers").lookup(word)
    core.map("publishers").update(word, bytes(8))
    tables.refresh_all()
    every = core.map("publishers").lookup(word)
    table.close()
    core.object.close()

    assert (1 << 6).to_bytes(8, "little") == one == every


def test_again():
    """A process that registers again has one table, the new one; the old connection's end changes nothing."""

    def twice(path):
        first, second = connect(path), connect(path)
        ask(first, hello())
        ask(second, hello())
        yield "two"
        first.close()
        yield "one"
        second.close()

    with registrar() as agent, Child(twice, agent.path) as child:
        child.next()
        child.next()
        machine.until(lambda: agent.snapshot().connections == 1)

        assert {child.pid} == agent.in_force()
        assert 1 == agent.snapshot().forgotten["replaced"]


@pytest.mark.parametrize(
    ("settings", "uid", "says"),
    [
        ({"allow": ""}, 65534, "--allow-uid 65534"),
        ({"allow": "1000"}, 65534, "--allow-uid 65534"),
        ({"allow": "*", "deny": "65534"}, 65534, "is denied"),
        ({"allow": "65534"}, 65534, None),
        ({"allow": ""}, 0, None),
        ({"allow": "", "deny": "0"}, 0, "is denied"),
    ],
)
def test_policy(settings, uid, says):
    """Root and the agent's user may register, others when they are allowed; who is denied may not."""
    with registrar(**settings) as agent:
        answer = once(lambda: next(registered(agent.path)), uid=uid)
        refused = agent.snapshot().refused["policy"]

    assert ("welcome" if says is None else "refused") == answer["type"]
    assert int(says is not None) == refused
    assert (says or "") in answer.get("text", "")


def test_supplementary_group():
    """A supplementary group allows, or denies, as the effective one does."""

    def member(path):
        os.setgroups([4242])
        os.setresuid(1234, 1234, 1234)
        yield ask(connect(path), hello())[0]["type"]

    said = []
    for rules in ({"allow_gids": ["4242"], "allow": ""}, {"deny_gids": ["4242"]}):
        with registrar(**rules) as agent, Child(member, agent.path, uid=0) as child:
            said.append(child.next())

    assert ["welcome", "refused"] == said


def test_programs_change():
    """A registered process is told which programs act when that changes."""

    def told(path):
        connection = connect(path)
        ask(connection, hello())
        yield "registered"
        yield connection.recv(4096).decode()

    with registrar() as agent, Child(told, agent.path) as child:
        child.next()
        agent.registry.set_programs({"sched": 4, "sock": 8})
        said = child.next()

    assert '{"type":"programs","programs":{"sched":4,"sock":8}}' == said


@pytest.mark.parametrize("which", [0, 1], ids=["slots", "lines"])
def test_quota_of_user(which):
    """Tables of which a user keeps one map after leaving count against the quota until that is really gone."""

    def hoard(path):
        kept = []
        for _ in range(4):
            connection = connect(path)
            answer, fds = ask(connection, hello())
            kept += fds[which : which + 1]
            for fd in fds[:which] + fds[which + 1 :]:
                os.close(fd)
            connection.close()
        yield answer
        for fd in kept:
            os.close(fd)
        yield "closed"
        answers = []

        def register():
            answers.append(ask(connect(path), hello())[0])
            return answers[-1]["type"] == "welcome"

        machine.until(register)
        yield answers[-1]["type"]

    with registrar(quotas=Quotas(tables=64, tables_of_user=3)) as agent, Child(hoard, agent.path) as child:
        refused = child.next()
        child.next()
        released = child.next()

        assert ("refused", "quota") == (refused["type"], refused["reason"])
        assert "--max-tables-per-uid" in refused["text"]
        assert "welcome" == released


def test_quota_in_all():
    """With all tables given away, the next process is refused, whoever it is."""
    with registrar(quotas=Quotas(tables=1, tables_of_user=1)) as agent, Child(registered, agent.path) as child:
        child.next()
        refused = once(lambda: next(registered(agent.path)), uid=1234)

        assert ("refused", "full") == (refused["type"], refused["reason"])


def test_close_many():
    """The end of the agent does not wait for the kernel once for each process."""
    with registrar() as agent, contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(registered, agent.path)) for _ in range(16)]
        for child in children:
            child.next()
        agent.registry._desk._tables.remove = None  # it would fail
        agent.registry.close()
        snapshot = agent.snapshot()

    assert (0, 0, 16) == (snapshot.processes, snapshot.connections, snapshot.forgotten["ended"])


def test_close_busy():
    """The end of the agent comes before whatever else is to be done in a round."""
    with registrar() as agent, contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(registered, agent.path)) for _ in range(16)]
        for child in children:
            child.next()
        connections = agent.registry._connections
        handle = connections.handle
        connections.handle = lambda fd: (time.sleep(0.5), handle(fd))
        for child in children:
            child.next()  # it closes its connection
        agent.registry.close(60)
        forgotten = agent.snapshot().forgotten

    assert 16 == forgotten["closed"] + forgotten["ended"]
    assert forgotten["ended"] > 8


def test_close_stuck(caplog):
    """The end of the agent does not wait for ever for a registry that is stuck."""
    held = threading.Event()
    with registrar() as agent:
        agent.registry._desk.identify = lambda *_: held.wait()
        with connect(agent.path) as connection:
            connection.send(hello())
            time.sleep(0.1)
            agent.registry.close(0.2)
        held.set()
        agent.registry._thread.join()
        agent.registry._stopping = False
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]

    assert "is stuck" in said[0]


@pytest.fixture
def bpf_fs(tmp_path):
    """A BPF file system."""
    with mounted_bpf_fs(tmp_path) as directory:
        yield directory


def reconnecting(path):
    """Register with one agent, and with that token with the next; write into the slots before."""
    import mmap

    connection = connect(path)
    answer, fds = ask(connection, hello())
    slots = mmap.mmap(fds[0], 65536)
    slots[:4] = b"mine"
    yield answer["token"]
    connection.close()
    for token in ("f" * 32, answer["token"]):
        connection = connect(path)
        second, fds = ask(connection, hello(token))
        yield [second["kept"], mmap.mmap(fds[0], 65536, prot=mmap.PROT_READ)[:4].decode("latin1")]


def test_next_agent(bpf_fs):
    """The next agent has the slots of a process that knows its token, and none for one that does not."""
    pins = bpf_fs / "ebpftrace"
    with registrar(pin_dir=str(pins), keep_pins=True) as agent:
        directory = agent.directory
        first = Child(reconnecting, agent.path)
        first.next()
        names = sorted(path.name for path in pins.iterdir())
    directory.mkdir()
    with first, registrar(pin_dir=str(pins), directory=directory) as agent:
        wrong, right = first.next(), first.next()
        machine.until(lambda: agent.snapshot().processes == 1)
        in_force = agent.in_force()
    left = list(pins.iterdir())
    directory.rmdir()

    assert 1 == len(names)
    assert [False, "\0\0\0\0"] == wrong
    assert [True, "mine"] == right
    assert 1 == len(in_force)
    assert [] == left


def test_dead_meanwhile(bpf_fs):
    """Tables of processes that ended while there was no agent are removed by the next one, at its start."""
    pins = bpf_fs / "ebpftrace"
    with registrar(pin_dir=str(pins), keep_pins=True) as agent:
        child = Child(registered, agent.path)
        child.next()
    child_kept = len(list(pins.iterdir()))
    child.end()
    with registrar(pin_dir=str(pins)) as agent:
        left = list(pins.iterdir())

    assert 1 == child_kept
    assert [] == left


def test_pin_directory_of_others(bpf_fs):
    """A directory that others can get at is not used: whoever opens a table there could write to it."""
    pins = bpf_fs / "ebpftrace"
    pins.mkdir()
    pins.chmod(0o755)
    with registrar(pin_dir=str(pins)) as agent, Child(registered, agent.path) as child:
        welcome = child.next()

    assert "welcome" == welcome["type"]
    assert [] == list(pins.iterdir())


def test_pin_directory_linked(bpf_fs):
    """A link in place of the directory is not followed: it could lead elsewhere tomorrow."""
    elsewhere = bpf_fs / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (bpf_fs / "ebpftrace").symlink_to(elsewhere)
    with registrar(pin_dir=str(bpf_fs / "ebpftrace")) as agent, Child(registered, agent.path) as child:
        welcome = child.next()
        left = list(elsewhere.iterdir())

    assert "welcome" == welcome["type"]
    assert [] == left


def test_pin_directory_mounted_over(bpf_fs):
    """A directory over which another file system is mounted is not used, and said."""
    pins = bpf_fs / "ebpftrace"
    pins.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", pins], check=True)
    try:
        with pytest.raises(UnsupportedError, match="another file system"):
            Pins(pins)
    finally:
        subprocess.run(["umount", pins], check=True)


def test_no_bpf_fs(tmp_path):
    """Without a BPF file system nothing is pinned and nothing is left, and registering works."""
    with registrar(pin_dir=str(tmp_path / "ebpftrace")) as agent, Child(registered, agent.path) as child:
        welcome = child.next()

    assert "welcome" == welcome["type"]
    assert [] == list(tmp_path.iterdir())


def test_one_agent():
    """A second agent does not take the socket from the first; a socket that an agent left when it died is replaced."""
    with registrar() as agent:
        with pytest.raises(CommandError, match="another agent listens there"):
            registrar(directory=agent.directory).__enter__()
        still = once(lambda: next(registered(agent.path)))

    assert "welcome" == still["type"]


def test_stale_socket():
    """A socket that an agent left when it died is replaced."""
    directory = Path(tempfile.mkdtemp(prefix="ebt-registry-"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(directory / "agent.sock"))
    with registrar(directory=directory) as agent:
        answer = once(lambda: next(registered(agent.path)))
    left = list(directory.iterdir())
    directory.rmdir()

    assert "welcome" == answer["type"]
    assert [] == left
