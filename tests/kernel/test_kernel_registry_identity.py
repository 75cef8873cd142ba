# SPDX-License-Identifier: Apache-2.0
"""Whose table it is: a process that has executed another binary, has ended, or is not the sender, has none."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path

import machine
from registrar import OTHER, Child, ask, connect, hello, once, registrar, staying

from ebpftrace.agent import registry, registry_connections


def keeps_connection_over_exec(path):
    """Register, and execute another binary with the connection left open."""
    connection = connect(path)
    yield ask(connection, hello())[0]["type"]
    connection.set_inheritable(True)
    os.execv("/bin/sleep", ["sleep", "60"])


def test_exec():
    """A process that executed another binary has no table, though its connection is still open."""
    with registrar() as agent, Child(keeps_connection_over_exec, agent.path) as child:
        child.next()
        before = agent.in_force()
        os.write(child._commands, b"x")
        machine.until(lambda: agent.snapshot().forgotten["exec"])

        assert {child.pid} == before
        assert set() == agent.in_force()
        assert 1 == agent.snapshot().forgotten["exec"]


def test_exec_while_busy():
    """Programs look for no table of a process that executed another binary, however long the agent is busy."""
    begun, held = threading.Event(), threading.Event()
    with registrar() as agent, Child(keeps_connection_over_exec, agent.path) as child:
        child.next()
        before = agent.bit(child.pid)
        identify = agent.registry._desk.identify
        agent.registry._desk.identify = lambda *args: (begun.set(), held.wait(), identify(*args))[-1]
        with connect(agent.path):
            begun.wait()
            os.write(child._commands, b"x")
            machine.until(lambda: not agent.bit(child.pid))
            busy = (agent.bit(child.pid), agent.snapshot().forgotten["exec"])
            held.set()
            machine.until(lambda: agent.snapshot().forgotten["exec"])
        after = agent.snapshot()

    assert 1 == before
    assert (0, 0) == busy
    assert (0, 1) == (after.processes, after.forgotten["exec"])


def test_exec_not_told():
    """When the kernel had no room to tell of execs, the agent looks at every process itself."""
    with registrar() as agent, Child(staying, agent.path, uid=OTHER) as innocent:
        innocent.next()
        with Child(keeps_connection_over_exec, agent.path) as child:
            child.next()
            kernel = agent.registry._kernel
            kernel.execs, missed = list, kernel.missed
            os.write(child._commands, b"x")
            machine.until(lambda: b"sleep" in Path(f"/proc/{child.pid}/comm").read_bytes())
            kernel.missed = lambda: missed() + 1
            machine.until(lambda: agent.snapshot().forgotten["exec"])

            assert 1 == agent.snapshot().forgotten["exec"]
            assert {innocent.pid} == agent.in_force()


def test_end_not_watched(monkeypatch):
    """Where there is no descriptor that tells of a process's end, the agent looks now and then."""
    monkeypatch.setattr(registry, "_SETTLE_S", 0.1)
    monkeypatch.setattr(registry_connections, "pidfd_of", lambda *_: -1)
    with registrar() as agent, Child(leaves_connection_to_child, agent.path) as child:
        accomplice = child.next()
        os.write(child._commands, b"x")
        os.waitpid(child.pid, 0)
        child.pid = 0
        machine.until(lambda: agent.snapshot().forgotten["exited"])
        after = agent.snapshot()
        os.kill(accomplice, 9)

    assert (0, 1) == (after.processes, after.forgotten["exited"])


def leaves_connection_to_child(path):
    """Register, leave the connection to a child, and end."""
    connection = connect(path)
    ask(connection, hello())
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    yield pid
    os._exit(0)


def test_exit():
    """A process that ended has no table, though an accomplice keeps its connection open."""
    with registrar() as agent, Child(leaves_connection_to_child, agent.path) as child:
        accomplice = child.next()
        before = agent.in_force()
        os.write(child._commands, b"x")
        machine.until(lambda: agent.snapshot().forgotten["exited"])
        after = agent.in_force()
        os.kill(accomplice, 9)

    assert 1 == len(before)
    assert set() == after


def test_pid_of_sender():
    """A hello from another process than the one that connected is refused, and registers neither."""

    def connects(path):
        connection = connect(path)
        pid = os.fork()
        if pid == 0:
            connection.send(hello())
            os._exit(0)
        os.waitpid(pid, 0)
        yield socket.recv_fds(connection, 4096, 8)[0].decode()
        connection.close()

    with registrar() as agent, Child(connects, agent.path) as child:
        said = child.next()

        assert "not from the process that connected" in said
        assert set() == agent.in_force()


def connects_then_executes(path):
    """Connect, execute another binary with the connection left open, and have that say hello."""
    connection = connect(path)
    connection.set_inheritable(True)
    yield "connected"
    code = f"import os; os.write({connection.fileno()}, {hello()!r}); os.read({connection.fileno()}, 16384)"
    os.execv(sys.executable, [sys.executable, "-c", code])


def test_exec_before_hello():
    """A process that executed another binary after it had connected gets no table for it."""
    with registrar() as agent, Child(connects_then_executes, agent.path, uid=0) as child:
        child.next()
        machine.until(lambda: agent.snapshot().connections == 1)
        os.write(child._commands, b"x")
        machine.until(lambda: agent.snapshot().connections == 0)

        assert 1 == agent.snapshot().refused["gone"]
        assert 0 == agent.snapshot().registered


def test_privileges_changed():
    """A process that has other privileges than when it connected gets no table."""

    def drops(path):
        connection = connect(path)
        os.setresuid(OTHER, OTHER, OTHER)
        yield ask(connection, hello())[0]

    with registrar() as agent, Child(drops, agent.path, uid=0) as child:
        said = child.next()

        assert ("refused", "gone") == (said["type"], said["reason"])
        assert "other privileges" in said["text"]


def test_exec_while_registering():
    """A process that executes another binary while its table is put in force has none in the end."""
    with registrar() as agent:
        desk = agent.registry._desk
        put = desk._tables.put

        def then_executed(tgid, table):
            put(tgid, table)
            found = desk.identify
            desk.identify = lambda *args: found(*args)._replace(exec_id=0)  # an exec that the kernel did not tell

        desk._tables.put = then_executed
        answer, _ = once(lambda: ask(connect(agent.path), hello()))
        machine.until(lambda: agent.snapshot().connections == 0)
        in_force, snapshot = agent.in_force(), agent.snapshot()

    assert None is answer
    assert set() == in_force
    assert (1, 0) == (snapshot.forgotten["exec"], snapshot.connections)
