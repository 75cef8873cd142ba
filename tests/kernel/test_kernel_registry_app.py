# SPDX-License-Identifier: Apache-2.0
"""An application without privileges, traced by the agent: as its users see it."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import machine
import pytest
from agents import Agent, agent, of, plain
from harness import named, own, run
from otlp_servers import HttpCollector, running
from registrar import mounted_bpf_fs
from registry_apps import forking, on, refused, waiting

pytestmark = pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv(1)")

NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),  # the Python may be in somebody's home
)


@pytest.fixture
def socket_path():
    """Where an agent of the test listens, and everybody can connect."""
    directory = Path(tempfile.mkdtemp(prefix="ebt-registry-"))
    directory.chmod(0o755)
    yield directory / "agent.sock"
    shutil.rmtree(directory)


@pytest.mark.parametrize("prefix", [(), ("unshare", "--pid", "--fork")], ids=["", "own pid namespace"])
def test_traced(tmp_path, socket_path, prefix):
    """Kernel spans leave through the agent, in the application's trace; the breakdown is on the application's span."""
    with running(HttpCollector()) as collector:
        options = ("--config-names", "sched-trace", "--socket", str(socket_path), "--allow-uid", "nobody")
        with agent(tmp_path, *options, "--pin-dir", "", endpoint=collector.url) as daemon:
            outcome = run(waiting, str(socket_path), prefix=(*prefix, *NOBODY))
            metrics = daemon.metrics()
        spans = of(plain(collector), "sched")
    found = outcome.value
    [span] = own(found["spans"])

    assert found["active"]
    assert [] == outcome.log
    assert "agent" == found["by"]
    assert (1 if prefix else found["pid"]) == found["pid"]
    assert ["MainThread"] == found["threads"]
    assert [] == found["fds"]  # mapped, and closed
    assert 45e6 < span["times"]["sleep"] < 1e9
    assert {span["trace"]} == {each["trace"] for each in spans}
    assert span["id"] in {each["parent"] for each in spans}
    assert 1 == metrics["ebpftrace_registrations_total"]
    assert not socket_path.exists()


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "not pinned"])
def test_agent_killed(tmp_path, socket_path, pinned):
    """An application publishes on while the agent is away, and is traced again by the next one, without a restart."""
    bpf_fs = tmp_path / "bpf"
    bpf_fs.mkdir()
    ready = socket_path.parent / "ready"
    socket_path.parent.chmod(0o777)
    with mounted_bpf_fs(bpf_fs), running(HttpCollector()) as collector:
        pins = bpf_fs / "ebpftrace" if pinned else ""
        options = ("--config-names", "sched-trace", "--socket", str(socket_path), "--allow-uid", "65534")
        first = Agent(tmp_path, *options, "--pin-dir", str(pins)).ready()
        outcomes = []
        application = threading.Thread(
            target=lambda: outcomes.append(run(on, str(socket_path), 90, str(ready), prefix=NOBODY, timeout_s=120))
        )
        application.start()
        assert machine.until(ready.exists, 30)
        first.process.kill()
        first.end()
        with agent(tmp_path, *options, "--pin-dir", str(pins), endpoint=collector.url) as second:
            application.join()
            [line] = [each["fields"] for each in second.log() if each["message"] == "a process registered"]
        spans = of(plain(collector), "sched")
        left = list(pins.iterdir()) if pinned else []
    [outcome] = outcomes
    found = outcome.value
    last = [each for each in found["spans"] if each[0] == "last"]

    assert [
        f"WARNING the agent at {socket_path} went away; publishing goes on, kernel spans come when it is back",
        f"WARNING the agent at {socket_path} is back",
    ] == outcome.log
    assert str(pinned) == str(line["kept"])
    assert 1 == found["stats"]["agent"]["reconnects"]
    assert {each[1] for each in last[1:]} <= {each["parent"] for each in spans}
    assert all(each[2].get("sleep", 0) > 45e6 for each in last[1:])
    assert [] == left


def test_fork(tmp_path, socket_path):
    """The child of a fork registers by itself at its first span; the parent stays registered."""
    with running(HttpCollector()) as collector:
        options = ("--config-names", "sched-trace", "--socket", str(socket_path), "--allow-uid", "65534")
        with agent(tmp_path, *options, "--pin-dir", "", endpoint=collector.url) as daemon:
            found = run(forking, str(socket_path), prefix=NOBODY).value
            log = [each["fields"]["tgid"] for each in daemon.log() if each["message"] == "a process registered"]
        spans = of(plain(collector), "sched")

    assert found["still"]
    assert 2 == len(set(log))
    assert found["child"] in {each["parent"] for each in spans}


def test_no_agent(socket_path):
    """Without the agent that it names the application runs untraced, and one log line says what is missing."""
    outcome = run(refused, str(socket_path), prefix=NOBODY)
    [line] = outcome.log

    assert outcome.value["active"]
    assert line.startswith(f"WARNING the agent at {socket_path}")
    assert "there is no such socket" in line
    assert {} == named(outcome.value["spans"], "job")["times"]


def test_agent_later(tmp_path, socket_path):
    """An application that was there before the agent that it names is traced from when that comes."""
    ready = socket_path.parent / "ready"
    socket_path.parent.chmod(0o777)
    with running(HttpCollector()) as collector:
        options = ("--config-names", "sched-trace", "--socket", str(socket_path), "--allow-uid", "65534")
        outcomes = []
        application = threading.Thread(
            target=lambda: outcomes.append(run(on, str(socket_path), 60, str(ready), prefix=NOBODY, timeout_s=90))
        )
        application.start()
        assert machine.until(ready.exists, 30)
        with agent(tmp_path, *options, "--pin-dir", "", endpoint=collector.url):
            application.join()
        spans = of(plain(collector), "sched")
    [outcome] = outcomes
    last = [each for each in outcome.value["spans"] if each[0] == "last"]

    assert f"WARNING the agent at {socket_path} is back" == outcome.log[-1]
    assert 2 == len(outcome.log)
    assert {each[1] for each in last[1:]} <= {each["parent"] for each in spans}
    assert all(each[2].get("sleep", 0) > 45e6 for each in last[1:])


def test_refused(tmp_path, socket_path):
    """What the agent says to a user that it does not allow is the application's one log line."""
    options = ("--config-names", "sched-trace", "--socket", str(socket_path), "--pin-dir", "")
    with agent(tmp_path, *options) as daemon:
        outcome = run(refused, str(socket_path), prefix=NOBODY)
        metrics = daemon.metrics()

    assert not outcome.value["active"]
    assert "--allow-uid 65534" in outcome.value["reason"]
    assert [f"WARNING kernel tracing is off: {outcome.value['reason']}"] == outcome.log
    assert 1 == metrics['ebpftrace_refused_registrations_total{reason="policy"}']
