# SPDX-License-Identifier: Apache-2.0
"""An application's end of the agent's socket, with agents that are none."""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from ebpftrace.context import agent_link
from ebpftrace.context.agent_link import AgentLink, AwayError, RefusedError
from ebpftrace.context.registration import PROTOCOL, ProtocolError, Refused, Welcome, encode
from ebpftrace.runtime import by_agent
from ebpftrace.runtime.by_agent import AgentSide
from ebpftrace.settings import Settings

WELCOME = encode(Welcome(PROTOCOL, "token", {"sched": 1}))


@contextlib.contextmanager
def agent(path, serve):
    """Something that listens there, and serves one connection after the other in a thread."""

    def run():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    serve(connection)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def descriptors():
    """How many this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def path(tmp_path):
    """Of a socket."""
    return tmp_path / "agent.sock"


def test_no_table(path):
    """Descriptors that are no context table are not taken: a file that is cut short would end the process."""
    sizes = (64 * 1024, 256 * 1024)

    def serve(connection):
        connection.recv(4096)
        fds = [os.memfd_create("table") for _ in sizes]
        for fd, size in zip(fds, sizes, strict=True):
            os.ftruncate(fd, size)
        connection.sendmsg([WELCOME], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        for fd in fds:
            os.close(fd)

    before = descriptors()
    with agent(path, serve), pytest.raises(ProtocolError, match="something else than a context table"):
        AgentLink(str(path))

    assert before == descriptors()


def test_refused_before_hello(path):
    """A refusal that came before the hello could be sent is read all the same."""
    closed = threading.Event()

    def serve(connection):
        connection.send(encode(Refused("busy", "too many")))
        connection.close()
        closed.set()

    def late(message):
        closed.wait()
        return encode(message)

    with pytest.MonkeyPatch.context() as patch, agent(path, serve):
        patch.setattr(agent_link, "encode", late)
        with pytest.raises(RefusedError, match="too many") as caught:
            AgentLink(str(path))

    assert caught.value.soon


@pytest.mark.parametrize("say", [lambda _: None, lambda _: time.sleep(0.5)], ids=["reset", "silent"])
def test_no_answer(path, say):
    """An agent that is there but does not answer may answer soon."""
    with agent(path, say), pytest.raises(AwayError) as caught:
        AgentLink(str(path), timeout_s=0.2)

    assert caught.value.soon


def test_not_there(path):
    """One that is not there is not waited for."""
    with pytest.raises(AwayError, match="there is no such socket") as caught:
        AgentLink(str(path))

    assert not caught.value.soon


def side(path, *, insists=True):
    """A process's side of it, and how often it was told that nobody counts."""
    away = []
    made = AgentSide(Settings(agent_socket=str(path)), lambda _: None, lambda: away.append(1))
    made._insists = insists
    return made, away


def test_begins_away(path, caplog):
    """With an agent that is named and not there yet a process begins without, and says so once."""
    caplog.set_level(logging.WARNING)
    made, away = side(path)
    made.connect()
    said = [record.getMessage() for record in caplog.records]

    assert made.away
    assert [1] == away
    assert 1 == len(said)
    assert "kernel spans come when" in said[0]


def test_usual_place(path):
    """An agent that is only looked for at the usual place is not waited for."""
    made, _ = side(path, insists=False)

    with pytest.raises(AwayError):
        made.connect()


def test_refused_for_good(path):
    """A process that the agent does not allow does not wait for it to change its mind."""

    def serve(connection):
        connection.recv(4096)
        connection.send(encode(Refused("policy", "no")))

    made, _ = side(path)
    with agent(path, serve), pytest.raises(RefusedError):
        made.connect()


def test_asks_again(path):
    """At the start, a process asks again while the agent is only busy."""
    answers = []

    def serve(connection):
        connection.recv(4096)
        answers.append(1)
        if len(answers) > 2:
            connection.send(encode(Refused("policy", "no")))

    made, _ = side(path)
    with agent(path, serve), pytest.raises(RefusedError):
        made.connect()

    assert 3 == len(answers)


class Link:
    """A connection that is over at once."""

    def __init__(self):
        self.welcome = Welcome(PROTOCOL, "token", {})
        self.table = self
        self.slots = self.lines = -1
        self.closed = 0

    def close(self):
        """Count."""
        self.closed += 1


def test_comes_and_goes(path, caplog, monkeypatch):
    """An agent that comes and goes all the time is asked less and less often, and is one line of the log."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(by_agent._publisher, "rearm", lambda *_: None)
    monkeypatch.setattr(by_agent, "AgentLink", lambda *_: Link())
    made, _ = side(path)
    pauses = []
    monkeypatch.setattr(made, "_wait", lambda seconds: pauses.append(seconds) or False)
    for _ in range(8):
        assert made._come_back()
    lines = [record.getMessage().rpartition("agent.sock ")[2][:7] for record in caplog.records]

    assert ["went aw", "is back"] == lines
    assert all(2.5 <= pause <= 5.0 for pause in pauses[5:])
    assert pauses[0] <= 0.25


def test_no_memory(path, caplog, monkeypatch):
    """A table that cannot be mapped is let go of, with a log line, and the agent is asked once more."""
    links = [Link(), Link()]
    asked = iter(links)

    def rearm(*_):
        if not links[0].closed:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(by_agent._publisher, "rearm", rearm)
    monkeypatch.setattr(by_agent, "AgentLink", lambda *_: next(asked))
    made, _ = side(path)
    monkeypatch.setattr(made, "_wait", lambda seconds: False)

    assert made._come_back()
    assert [2, 1] == [link.closed for link in links]
    assert links[1] is made._link
    assert "the agent's table cannot be mapped: Cannot allocate memory" in caplog.text


def test_closed_meanwhile(path):
    """A table that comes when the process has left already is closed."""
    made, _ = side(path)
    made._closed = True
    link = Link()

    assert not made._adopt(link)
    assert 2 == link.closed


def test_stuck(path, monkeypatch):
    """A thread that does not end is waited for once."""
    monkeypatch.setattr(by_agent, "_JOIN_S", 0.3)
    made, _ = side(path)
    made._alarm = by_agent._socket_pair()
    made._ended.acquire()
    started = time.monotonic()
    made.close()
    once = time.monotonic() - started
    made.close()
    twice = time.monotonic() - started - once
    for end in made._alarm:
        end.close()

    assert once >= 0.3
    assert twice < 0.2
