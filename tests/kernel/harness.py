# SPDX-License-Identifier: Apache-2.0
"""Runs a function of a test module in a process of its own, and brings its result back.

The library's state is a process's: programs, hooks, providers, exit handlers. So what a test does, it does in a fresh
interpreter, by a plain function beside the test; what it returns is JSON, and the test judges it:

    def sleeping():
        app = App()
        ...
        return app.spans()

    def test_sleep():
        spans = run(sleeping).value
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import machine
import pytest

FORK = os.environ.get("EBPFTRACE_TEST_FORK") == "1"
"""Take a fork of this process in place of a fresh interpreter where a test allows: for machines where starting Python
takes seconds."""


class Outcome:
    """How a function's process ended.

    Attributes:
        value: what the function returned.
        log: records of the "ebpftrace" loggers, as "LEVEL message".
        exit_code: of the process, as `subprocess` has it.
        output, errors: what it wrote to stdout and stderr.
        seconds: how long it took, interpreter start included.
    """

    def __init__(self, report, done, seconds):
        self.value = report.get("value")
        self.log = report.get("log", [])
        self.exit_code = done.returncode
        self.output = done.stdout
        self.errors = done.stderr
        self.seconds = seconds


def run(function, *args, env=None, prefix=(), stop=True, exit_code=0, timeout_s=60):
    """Run `function(*args)` in a new process and return its `Outcome`.

    Args:
        function: of the top level of a test module.
        args: JSON-able.
        env: added to the environment.
        prefix: a command to run Python under, such as unshare(1).
        stop: stop the library after the function, and look that it left nothing in its process.
        exit_code: that the process is expected to end with.
        timeout_s: it is killed after this long, with all below it.
    """
    report_fd = os.memfd_create("report")
    words = [str(report_fd), function.__module__, function.__name__, json.dumps({"args": args, "stop": stop})]
    started = time.monotonic()
    if FORK and stop and not (env or prefix):
        import forked

        done = forked.run(main, words, timeout_s * machine.PATIENCE)
    else:
        done = _execute([*prefix, sys.executable, __file__, *words], env, report_fd, timeout_s * machine.PATIENCE)
    if done is None:
        pytest.fail(f"{function.__name__} did not end within {timeout_s * machine.PATIENCE} s")
    with os.fdopen(report_fd, "rb") as file:
        file.seek(0)
        text = file.read()
    assert done.returncode == exit_code, f"{function.__name__} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    report = json.loads(text) if text else {}
    assert not report.get("left"), f"{function.__name__} left {report['left']} in its process"
    assert machine.remaining(report.get("ids", [])) == []
    return Outcome(report, done, time.monotonic() - started)


def _execute(command, env, report_fd, timeout_s):
    """Run a command to its end; None when the time was over first."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **(env or {})},
        pass_fds=[report_fd],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        print(*process.communicate(), sep="\n")
        return None
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


class App:
    """An application with OpenTelemetry, traced: a provider of its own, and what it exported.

    Args:
        settings: of `ebpftrace.start()`.
        sampler: of the provider.
        export: keep the spans; a forked child may hang in the lock of the exporter that does.
    """

    def __init__(self, *, sampler=None, export=True, **settings):
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        import ebpftrace

        self.session = ebpftrace.start(**settings)
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        if export:
            self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("app")

    def span(self, name):
        """A span that is current in the block."""
        return self.tracer.start_as_current_span(name)

    def traced(self, name, *programs, children=False):
        """A span with programs enabled for it."""
        import ebpftrace

        @contextlib.contextmanager
        def block():
            with self.span(name) as span, ebpftrace.enable(*programs, children=children):
                yield span

        return block()

    def spans(self):
        """All spans so far, the kernel's included, as plain dicts."""
        self.provider.force_flush()
        return [plain(span) for span in self.exporter.get_finished_spans()]


def plain(span):
    """A finished span as JSON-able values; ids in hexadecimal."""
    attributes = dict(span.attributes)
    return {
        "name": span.name,
        "trace": format(span.context.trace_id, "032x"),
        "id": format(span.context.span_id, "016x"),
        "parent": format(span.parent.span_id, "016x") if span.parent else None,
        "start": span.start_time,
        "end": span.end_time,
        "wall": span.end_time - span.start_time,
        "program": attributes.get("ebpftrace.program"),
        "times": {k.removeprefix(TIME): v for k, v in attributes.items() if k.startswith(TIME)},
        "attributes": attributes,
        "error": span.status.description if not span.status.is_ok else None,
        "service": span.resource.attributes.get("service.name"),
    }


TIME = "ebpftrace.time."


def own(spans):
    """The application's spans."""
    return [span for span in spans if span["program"] is None]


def kernel(spans, program=None):
    """The kernel's spans, of one program or of all."""
    return [span for span in spans if span["program"] is not None and program in (None, span["program"])]


def named(spans, name):
    """The one span of that name."""
    [found] = [span for span in spans if span["name"] == name]
    return found


def below(spans, parent):
    """The kernel's spans whose parent is `parent`."""
    return [span for span in kernel(spans) if span["parent"] == parent["id"]]


class _Log(logging.Handler):
    """Keeps what the library says, as "LEVEL message"."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.lines = []

    def emit(self, record):
        """Keep one record."""
        self.lines.append(f"{record.levelname} {record.getMessage()}")


def _left():
    """What of the library is still in this process."""
    import threading

    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("ebpftrace")]
    return {name: found for name, found in (("bpf fds", machine.bpf_fds()), ("threads", threads)) if found}


def _write(fd, report):
    data = json.dumps(report).encode()
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)


def main(report_fd, module, function, request):
    """Be the process that `run` started."""
    log = _Log()
    logging.getLogger("ebpftrace").addHandler(log)
    request = json.loads(request)
    report = {"log": log.lines}
    called = getattr(importlib.import_module(module), function)
    if not request["stop"]:  # what happens at exit is the test; report as we go
        report["value"] = called(*request["args"], lambda value: _write(report_fd, {**report, "value": value}))
        return
    report["value"] = called(*request["args"])
    report["ids"] = machine.bpf_ids()
    import ebpftrace

    ebpftrace.stop()
    report["left"] = _left()
    _write(report_fd, report)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(int(sys.argv[1]), *sys.argv[2:])
