# SPDX-License-Identifier: Apache-2.0
"""The agent as a process: started as systemd would, watched by its notifications, its spans as plain dicts."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import machine
from otlp_servers import HttpCollector, running

COMMAND = Path(sys.executable).with_name("ebpftrace")
PROGRAMS = Path(__file__).parent.parent / "data/programs"


class Agent:
    """A running agent.

    Args:
        tmp_path: for its notification socket and its log.
        args: of `ebpftrace agent`.
        env: added to the environment; without an exporter spans go nowhere.
        endpoint: an OTLP endpoint.
    """

    def __init__(self, tmp_path, *args, env=None, endpoint=""):
        self._notify_path = tmp_path / f"notify-{time.monotonic_ns()}"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self._notify_path))
        self._log_path = tmp_path / f"log-{time.monotonic_ns()}"
        environment = {**os.environ, "NOTIFY_SOCKET": str(self._notify_path), "OTEL_BSP_SCHEDULE_DELAY": "200"}
        if endpoint:
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
        else:
            environment["OTEL_TRACES_EXPORTER"] = "none"
        command = [COMMAND, "agent", "--log-format", "json", *args]
        if "--listen" not in args:
            command += ["--listen", "127.0.0.1:0"]
        if "--socket" not in args:  # the usual place is another agent's
            command += ["--socket", ""]
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, env={**environment, **(env or {})}, stderr=log, stdout=subprocess.PIPE, text=True
            )
        self.pid = self.process.pid

    def wait_for(self, word, timeout_s=30.0):
        """Wait for a notification ("READY=1"); fails when the agent ends before."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self._notify], [], [], 0.05)
            if ready and word in self._notify.recv(4096).decode().split("\n"):
                return self
            if not ready and self.process.poll() is not None:
                break
        raise AssertionError(f"the agent did not say {word}:\n{self.log_text()}")

    def ready(self):
        """Wait until it runs."""
        return self.wait_for("READY=1")

    def reload(self):
        """Have it read its files again, and wait until that is done."""
        self.process.send_signal(signal.SIGHUP)
        self.wait_for("RELOADING=1")
        return self.ready()

    def end(self, number=signal.SIGTERM, timeout_s=20.0):
        """End it, by a signal; return the exit code. Idempotent."""
        if self.process.stdout.closed:
            return self.process.returncode
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
            self.process.stdout.close()
            self.process.wait()
            self._notify.close()
            self._notify_path.unlink(missing_ok=True)
        return self.process.returncode

    def log_text(self):
        """All that it said."""
        return self._log_path.read_text()

    def log(self):
        """All that it said, as dicts."""
        return [json.loads(line) for line in self.log_text().splitlines() if line.startswith("{")]

    def totals(self):
        """The counters of its last log line."""
        [line] = [each for each in self.log() if each["message"] == "stopped"]
        return {key: int(value) for key, value in line["fields"].items()}

    def port(self):
        """Where its metrics are."""
        [line] = [each for each in self.log() if each["message"] == "metrics are served"]
        return int(line["fields"]["port"])

    def get(self, path):
        """Ask its HTTP endpoint; return status and text."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port()}{path}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self):
        """Its metrics, by their line's head."""
        lines = (line for line in self.get("/metrics")[1].splitlines() if not line.startswith("#"))
        return {head: float(value) for head, _, value in (line.rpartition(" ") for line in lines)}


@contextlib.contextmanager
def agent(tmp_path, *args, **settings):
    """An agent that runs within the block; whatever it had in the kernel is gone afterwards."""
    running = Agent(tmp_path, *args, **settings)
    try:
        running.ready()
        ids = machine.bpf_ids(running.pid)
        yield running
    finally:
        running.end()
    assert machine.remaining(ids) == []


def build(stem, folder):
    """Compile a program of tests/data/programs into a folder, its description beside it; return the description."""
    command = [COMMAND, "build", PROGRAMS / f"{stem}.bpf.c", "-o", folder / f"{stem}.bpf.o", "--werror"]
    subprocess.run(command, check=True, capture_output=True)
    return Path(shutil.copy(PROGRAMS / f"{stem}.yaml", folder))


@contextlib.contextmanager
def traced(tmp_path, description, encoder):
    """An agent that runs a program within the block, and the spans of the program after it."""
    spans = []
    with running(HttpCollector()) as collector:
        with agent(tmp_path, description, "--encoder", encoder, endpoint=collector.url) as daemon:
            yield daemon, spans
        spans += of(plain(collector), description.stem)


def refused(*args, env=None):
    """Run an agent that is expected not to start; return exit code and what it said."""
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none", **(env or {})}
    command = [COMMAND, "agent", "--socket", "", *(() if "--listen" in args else ("--listen", "none")), *args]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def _value(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_value(each) for each in value.array_value.values)
    return getattr(value, kind) if kind else None


def plain(collector):
    """All spans that a collector got, as dicts."""
    found = []
    for group in collector.resource_spans:
        resource = {each.key: _value(each.value) for each in group.resource.attributes}
        for scope in group.scope_spans:
            found += [_plain(span, resource) for span in scope.spans]
    return found


def _plain(span, resource):
    return {
        "name": span.name,
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "kind": span.kind,
        "status": (span.status.code, span.status.message),
        "attributes": {each.key: _value(each.value) for each in span.attributes},
        "events": [(event.name, event.time_unix_nano) for event in span.events],
        "links": [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        "service": resource.get("service.name"),
        "resource": resource,
    }


def of(spans, program):
    """The spans of one program."""
    return [span for span in spans if span["attributes"].get("ebpftrace.program") == program]


def own(spans):
    """What the agent says about itself."""
    return [span for span in spans if span["service"] == "ebpftrace-agent"]
