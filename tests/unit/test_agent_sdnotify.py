# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import time
import uuid

import pytest

from ebpftrace.agent.sdnotify import Notifier


class Manager:
    """The receiving end."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(2)

    def said(self):
        """The lines of the next notification."""
        return self.socket.recv(4096).decode().split("\n")

    def waiting(self):
        """What has come and was not looked at."""
        self.socket.setblocking(False)
        try:
            return self.socket.recv(4096)
        except BlockingIOError:
            return b""
        finally:
            self.socket.settimeout(2)


@pytest.fixture
def manager(tmp_path):
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.socket.close()


@pytest.fixture
def notifier(manager, tmp_path):
    made = Notifier(str(tmp_path / "notify"))
    yield made
    made.close()


def test_life(manager, notifier):
    """The states of a life are said in systemd's words, each with its line for people."""
    notifier.ready("4 programs\nrun")
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    said = [manager.said()]
    notifier.reloading()
    reloading = manager.said()
    notifier.status("busy")
    said.append(manager.said())
    notifier.extend_timeout(2.5)
    said.append(manager.said())
    notifier.stopping("sending what is queued")
    said.append(manager.said())

    assert [
        ["READY=1", "STATUS=4 programs run"],
        ["STATUS=busy"],
        ["EXTEND_TIMEOUT_USEC=2500000"],
        ["STOPPING=1", "STATUS=sending what is queued"],
    ] == said
    assert ["RELOADING=1", "STATUS=reloading"] == [reloading[0], reloading[2]]
    assert before <= int(reloading[1].removeprefix("MONOTONIC_USEC=")) <= before + 2_000_000
    assert (5, 0) == (notifier.sent, notifier.failed)


def test_abstract():
    """A name that begins with @ is one of the abstract name space."""
    name = f"ebpftrace-{uuid.uuid4().hex}"
    manager = Manager(f"\0{name}")
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": f"@{name}"})

    assert notifier.active
    assert notifier.abstract
    assert notifier.ready()
    assert ["READY=1"] == manager.said()
    notifier.close()
    manager.socket.close()


def test_nobody_there():
    """Without NOTIFY_SOCKET nothing is sent, and nothing is wrong."""
    notifier = Notifier.from_environment({})

    assert not notifier.active
    assert not notifier.ready("x")
    assert not notifier.keep_alive()
    assert (0, 0) == (notifier.sent, notifier.failed)


def test_manager_gone(manager, notifier, tmp_path, caplog):
    """A manager that is gone is counted with one line, and told again when it is back under that name."""
    assert notifier.ready()
    manager.socket.close()
    (tmp_path / "notify").unlink()
    answers = [notifier.status("1"), notifier.status("2")]
    again = Manager(str(tmp_path / "notify"))

    assert [False, False] == answers
    assert 2 == notifier.failed
    assert 1 == len(caplog.records)
    assert notifier.status("3")
    assert ["STATUS=3"] == again.said()
    again.socket.close()


def test_watchdog(manager, tmp_path, monkeypatch):
    """The sign of life is sent at half the time that the manager gave, however often it is offered."""
    now = [100.0]
    monkeypatch.setattr("ebpftrace.agent.sdnotify.time.monotonic", lambda: now[0])
    notifier = Notifier.from_environment(
        {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}
    )
    notifier.ready()
    sent = []
    for now[0] in (100.0, 101.0, 102.0, 102.5, 104.0):
        sent.append(notifier.keep_alive())

    assert [False, False, True, False, True] == sent
    assert [["READY=1"], ["WATCHDOG=1"], ["WATCHDOG=1"]] == [manager.said() for _ in range(3)]
    assert b"" == manager.waiting()
    notifier.close()


@pytest.mark.parametrize(
    ("variables", "watchdog_s", "lines"),
    [
        ({"WATCHDOG_USEC": "4000000"}, 4.0, 0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, 0.0, 0),
        ({"WATCHDOG_USEC": "soon"}, 0.0, 1),
        ({}, 0.0, 0),
    ],
)
def test_watchdog_variables(variables, watchdog_s, lines, caplog):
    """The watchdog's time is taken from the environment when it is meant for this process; nonsense is one line."""
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "/nowhere", **variables})

    assert watchdog_s == notifier.watchdog_s
    assert lines == len(caplog.records)


def test_unknown_address(caplog):
    """An address of a kind that is not known here is one line and no notifications."""
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234"})

    assert not notifier.active
    assert "vsock:2:1234" in caplog.text
