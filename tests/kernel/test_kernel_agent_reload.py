# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: the agent reads its files again while records keep coming, and none is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import machine
import pytest
from agents import COMMAND, agent, of, own, plain
from otlp_servers import HttpCollector, running

DATA = Path(__file__).parent.parent / "data/programs"
FIRST = 0x40000000


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The numbered program, compiled once."""
    folder = tmp_path_factory.mktemp("numbered")
    subprocess.run(
        [COMMAND, "build", DATA / "numbered.bpf.c", "-o", folder / "numbered.bpf.o"], check=True, capture_output=True
    )
    return folder / "numbered.bpf.o"


@pytest.fixture
def programs(tmp_path, built):
    """A directory with the numbered program, to be changed."""
    folder = tmp_path / "programs"
    folder.mkdir()
    shutil.copy(built, folder)
    shutil.copy(DATA / "numbered.yaml", folder)
    return folder


@pytest.fixture
def collector():
    """An OTLP/HTTP collector."""
    with running(HttpCollector()) as server:
        yield server


@contextlib.contextmanager
def calls(rate=1000):
    """Numbered calls, from a thread, for as long as the block lasts; the list grows with what was called."""
    called, stop = [], threading.Event()

    def work():
        number = 0
        while not stop.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.getpgid(FIRST + number)
            called.append(number)
            number += 1
            time.sleep(1 / rate)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield called
    finally:
        stop.set()
        thread.join()


def numbers(collector, key="test.number"):
    """How often each number arrived."""
    mine = (span for span in of(plain(collector), "numbered") if span["attributes"].get("process.pid") == os.getpid())
    return Counter(span["attributes"].get(key) for span in mine)


def called_after(called, count=50):
    """Wait until some more calls were made."""
    target = len(called) + count
    machine.until(lambda: len(called) >= target)


def test_other_labels(tmp_path, programs, collector):
    """Another description takes effect between two records: each number arrives once, by the old key or the new."""
    yaml = programs / "numbered.yaml"
    with agent(tmp_path, "--config-dir", programs, "--config-names", "numbered", endpoint=collector.url) as daemon:
        ids = machine.bpf_ids(daemon.pid)
        with calls() as called:
            called_after(called)
            yaml.write_text(yaml.read_text().replace("test.number", "test.renamed"))
            daemon.reload()
            called_after(called)
        assert machine.bpf_ids(daemon.pid) == ids  # nothing was loaded again
    old, new = numbers(collector), numbers(collector, "test.renamed")

    assert set(old) - {None}
    assert set(new) - {None}
    assert max(set(old) - {None}) < min(set(new) - {None})
    assert Counter(called) == Counter({**old, **new, None: 0}) - Counter()


def test_other_object(tmp_path, programs, built, collector):
    """Another object replaces the one that runs: no number is missing, none arrives more than twice."""
    with agent(tmp_path, "--config-dir", programs, "--config-names", "numbered", endpoint=collector.url) as daemon:
        before = machine.bpf_ids(daemon.pid)
        with calls() as called:
            called_after(called)
            # not the same bytes, though it does the same
            (programs / "numbered.bpf.o").write_bytes(built.read_bytes() + b"\0")
            daemon.reload()
            called_after(called)
        gone = [each for each in before if each not in machine.bpf_ids(daemon.pid)]
        assert machine.remaining(gone) == []
    found = numbers(collector)

    assert "prog_id" in dict(gone)  # it was replaced
    assert set(called) == set(found)
    assert set(found.values()) <= {1, 2}
    assert sum(count == 2 for count in found.values()) < len(called) // 2
    assert daemon.totals()["lost_in_kernel"] == 0


def test_mistake_changes_nothing(tmp_path, programs, collector):
    """A file that is wrong leaves what runs as it was; the log, the counters and a trace say what is wrong."""
    yaml = programs / "numbered.yaml"
    with agent(tmp_path, "--config-dir", programs, "--config-names", "numbered", endpoint=collector.url) as daemon:
        with calls() as called:
            called_after(called)
            yaml.write_text(yaml.read_text().replace("name: number,", "name: nubmer,"))
            daemon.reload()
            called_after(called)
        metrics = daemon.metrics()
    errors = [line for line in daemon.log() if line["level"] == "error"]

    assert Counter(called) == numbers(collector)
    assert metrics["ebpftrace_config_load_failures_total"] == 1
    assert len(errors) == 1
    assert "numbered.yaml:8" in errors[0]["message"]
    assert "nubmer" in errors[0]["message"]
    assert [span["name"] for span in own(plain(collector)) if span["status"][0] == 2] == ["describe numbered"]


def test_knob(tmp_path, programs, collector):
    """Another knob is another program in the kernel: it is loaded again, with the new value."""
    yaml = programs / "numbered.yaml"
    with agent(tmp_path, "--config-dir", programs, "--config-names", "numbered", endpoint=collector.url) as daemon:
        with calls() as called:
            called_after(called, 20)
        yaml.write_text(yaml.read_text() + "knobs: {copies: 3}\n")
        daemon.reload()
        with calls() as again:
            called_after(again, 20)
    found = numbers(collector)

    assert sum(found.values()) == len(called) + 3 * len(again)


def test_one_more_and_one_less(tmp_path, programs, built, collector):
    """A program whose files are gone keeps running until they are there again; one whose name is new starts."""
    shutil.copy(built, programs / "second.bpf.o")
    (programs / "second.yaml").write_text((programs / "numbered.yaml").read_text())
    names = ("--config-dir", programs, "--config-names", "numbered,second")
    with agent(tmp_path, *names, endpoint=collector.url) as daemon:
        (programs / "second.yaml").rename(programs / "second.gone")
        daemon.reload()
        failures = daemon.metrics()["ebpftrace_config_load_failures_total"]
        with calls() as called:
            called_after(called, 20)
        (programs / "second.gone").rename(programs / "second.yaml")
        daemon.reload()
        after = daemon.metrics()
    second = of(plain(collector), "second")

    assert failures == 1
    assert len(second) == len(called)
    assert after['ebpftrace_program_state{program="second",state="running"}'] == 1


def test_counters_only_grow(tmp_path, programs, built, collector):
    """Records counted before a reload are counted after it, though the object is another."""
    with agent(tmp_path, "--config-dir", programs, "--config-names", "numbered", endpoint=collector.url) as daemon:
        with calls() as called:
            called_after(called, 20)
        machine.until(lambda: daemon.metrics()['ebpftrace_records_total{program="numbered"}'] >= len(called))
        before = daemon.metrics()['ebpftrace_records_total{program="numbered"}']
        (programs / "numbered.bpf.o").write_bytes(built.read_bytes() + b"\0")
        daemon.reload()
        after = daemon.metrics()['ebpftrace_records_total{program="numbered"}']

    assert len(called) == before
    assert after >= before
