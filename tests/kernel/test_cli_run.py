# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace run`: programs that know nothing of ebpftrace, run for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ebpftrace.viewer import build_traces, load
from ebpftrace.viewer.check import check_spans

UNPRIVILEGED = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")

PLAIN = """
    import time
    from opentelemetry import trace
    tracer = trace.get_tracer("app")
    with tracer.start_as_current_span("work"):
        time.sleep(0.02)
"""

OWN_SDK = """
    import time
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda s: f"{s.name}\\n")))
    trace.set_tracer_provider(provider)
    with trace.get_tracer("app").start_as_current_span("work"):
        time.sleep(0.02)
"""

LATE_SDK = """
    from opentelemetry import trace
    library = trace.get_tracer("library")
    with library.start_as_current_span("early"):
        pass
    held = trace.get_tracer("held")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda s: f"{s.name}\\n")))
    trace.set_tracer_provider(provider)
    assert trace.get_tracer_provider() is provider
    for tracer in (library, held, trace.get_tracer("fresh")):
        with tracer.start_as_current_span("late"):
            pass
"""


@pytest.fixture
def ebpftrace(bpf, tmp_path):
    """Return a function that runs the command in an empty directory."""

    def call(*arguments, env=None, **options):
        return subprocess.run(
            [sys.executable, "-m", "ebpftrace.cli.main", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )

    return call


@pytest.fixture
def script(tmp_path):
    """Return a function that writes a program."""

    def write(text, name="app.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


def spans_of(path):
    return load(path).spans


def test_output(ebpftrace, script, tmp_path):
    """A program without an SDK gets one; its spans and the kernel's spans are one trace in the file."""
    done = ebpftrace("run", "--output", "deep/trace.jsonl", "--", sys.executable, script(PLAIN))
    spans = spans_of(tmp_path / "deep" / "trace.jsonl")
    [trace] = build_traces(spans)

    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    assert [] == check_spans(spans)
    assert ["work"] == [span.name for span in spans if not span.kernel]
    assert {"sched_switch", "sched_wakeup", "sleep"} <= {span.name for span in spans if span.kernel}
    assert trace.root.breakdown["sleep"] > 19_000_000


def test_own_sdk(ebpftrace, script):
    """A program with an SDK of its own exports the kernel's spans through it."""
    done = ebpftrace("run", "--", sys.executable, script(OWN_SDK))

    assert 0 == done.returncode
    assert {"work", "sched_switch", "sched_wakeup", "sleep"} <= set(done.stdout.split())


def test_late_sdk(ebpftrace, script):
    """A provider that is set after a library made a span wins, for tracers of every age."""
    done = ebpftrace(
        "run", "--enable", "none", "--", sys.executable, script(LATE_SDK), env={"OTEL_TRACES_EXPORTER": "none"}
    )

    assert (0, "") == (done.returncode, done.stderr)
    assert ["late"] * 3 == done.stdout.split()


RACE = """
    import threading
    from opentelemetry import trace
    tracer = trace.get_tracer("app")
    ready = threading.Barrier(8)
    def work():
        ready.wait()
        with tracer.start_as_current_span("root"):
            for _ in range(3):
                with tracer.start_as_current_span("child"):
                    pass
    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
"""

WORKERS = """
    import multiprocessing, sys, time
    from opentelemetry import trace
    tracer = trace.get_tracer("app")
    def work(number):
        with tracer.start_as_current_span(f"worker {number}"):
            time.sleep(0.01)
    if __name__ == "__main__":
        with tracer.start_as_current_span("parent"):
            pass
        context = multiprocessing.get_context(sys.argv[1])
        workers = [context.Process(target=work, args=(number,)) for number in range(2)]
        [worker.start() for worker in workers]
        [worker.join() for worker in workers]
"""


def test_first_spans_race(ebpftrace, script, tmp_path):
    """Threads that make the first spans at the same moment wait for the SDK: no span is lost, no trace torn."""
    ebpftrace("run", "--enable", "none", "--output", "t.jsonl", "--", sys.executable, script(RACE))
    traces = build_traces(spans_of(tmp_path / "t.jsonl"))

    assert [("root", 4)] * 8 == [(trace.root.name, len(trace.spans)) for trace in traces]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers(ebpftrace, script, tmp_path, method):
    """Workers of multiprocessing export their spans before they end."""
    done = ebpftrace("run", "--output", "t.jsonl", "--", sys.executable, script(WORKERS), method)

    assert (0, "") == (done.returncode, done.stderr)
    assert {"parent", "worker 0", "worker 1"} == {s.name for s in spans_of(tmp_path / "t.jsonl") if not s.kernel}


def test_enable_none(ebpftrace, script, tmp_path):
    """With `--enable none` there is the breakdown and no kernel span."""
    ebpftrace("run", "--enable", "none", "--output", "t.jsonl", "--", sys.executable, script(PLAIN))

    [work] = spans_of(tmp_path / "t.jsonl")
    assert work.breakdown


def test_hidden_sitecustomize(ebpftrace, script):
    """A sitecustomize that ours hides runs all the same."""
    site = script("import os; 'EBPFTRACE_RUN' in os.environ and print('hidden')", "sitecustomize.py")
    done = ebpftrace("run", "--", sys.executable, "-c", "print('program')", env={"PYTHONPATH": str(site.parent)})

    assert ["hidden", "program"] == done.stdout.split()


def test_instrument(ebpftrace, script, tmp_path):
    """`opentelemetry-instrument`, whose own sitecustomize hides ours, starts us by its entry point."""
    command = Path(sys.executable).with_name("opentelemetry-instrument")
    if not command.exists():
        pytest.skip("opentelemetry-instrument is not installed")
    done = ebpftrace(
        "run", "--output", "t.jsonl", "--", command, sys.executable, script(PLAIN),
        env={"OTEL_TRACES_EXPORTER": "none"},
    )  # fmt: skip

    assert 0 == done.returncode, done.stderr
    assert any(span.kernel for span in spans_of(tmp_path / "t.jsonl"))


def test_look_up_only(ebpftrace, script):
    """A mere search for the module that starts us does not use up the start."""
    program = script(
        """
        import importlib.util
        importlib.util.find_spec("opentelemetry.trace")
        import opentelemetry.trace
        import ebpftrace
        print(ebpftrace.stats()["active"])
        """
    )

    assert "True\n" == ebpftrace("run", "--", sys.executable, program).stdout


@pytest.mark.parametrize(("program", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_exit_code(ebpftrace, program, code):
    """The program's exit code is passed on, a signal as 128 and its number."""
    assert code == ebpftrace("run", "--", sys.executable, "-c", program).returncode


def test_signal(bpf, tmp_path):
    """A signal goes on to the program, which ends as it wants to."""
    program = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(9))\nprint('ready', flush=True)"
    program += "\ntime.sleep(30)"
    process = subprocess.Popen(
        [sys.executable, "-m", "ebpftrace.cli.main", "run", "--", sys.executable, "-c", program],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "ready\n" == process.stdout.readline()
    process.send_signal(signal.SIGTERM)

    assert 9 == process.wait(20)
    process.stdout.close()


def test_nothing_written(ebpftrace):
    """A program without a span leaves an empty file and is told what that may mean."""
    done = ebpftrace("run", "--output", "t.jsonl", "--", sys.executable, "-c", "print(1)")

    assert 0 == done.returncode
    assert "no span was written" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run"], 2, "no program to run"),
        (["run", "--", "no-such-program"], 127, "no program 'no-such-program'"),
        (["run", "--enable", "scheed", "--", "true"], 2, "there are: bio, cfs-throttling, exec, sched, sock"),
        (["run", "--output", "/proc/nowhere/t", "--", "true"], 1, "cannot write to /proc/nowhere"),
    ],
)
def test_mistakes(ebpftrace, arguments, code, says):
    """A wrong command line is one line that says what is wrong."""
    done = ebpftrace(*arguments)

    assert (code, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert says in done.stderr


def test_without_privilege(ebpftrace, script, tmp_path):
    """Where the kernel refuses, the program runs on, its spans are written, and one line says why there is no more."""
    done = ebpftrace("run", "--output", "t.jsonl", "--", *UNPRIVILEGED, sys.executable, script(PLAIN))

    assert 0 == done.returncode
    assert 1 == len(done.stderr.splitlines())
    assert "CAP_BPF" in done.stderr
    assert ["work"] == [span.name for span in spans_of(tmp_path / "t.jsonl")]


def test_doctor(ebpftrace):
    """On a machine where kernel tests run, doctor finds everything that is required, by name."""
    done = ebpftrace("doctor", "--json")
    report = json.loads(done.stdout)

    assert 0 == done.returncode
    assert report["usable"]
    assert {"kernel BTF", "BTF tracepoints", "ring buffers", "program exec", "program sched"} <= {
        feature["name"] for feature in report["features"] if feature["available"]
    }


def test_doctor_refused(ebpftrace):
    """Without privilege doctor exits with 1, names what is missing, and says what to do."""
    done = subprocess.run(
        [*UNPRIVILEGED, sys.executable, "-m", "ebpftrace.cli.main", "doctor"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert 1 == done.returncode
    assert "cannot trace here. Missing: privileges" in done.stdout
    assert "give the process CAP_BPF and CAP_PERFMON" in " ".join(done.stdout.split())


def test_lazy(ebpftrace, script):
    """A Python that never touches OpenTelemetry loads nothing of the library."""
    program = script("import sys; print('opentelemetry' in sys.modules, 'ebpftrace.kernel' in sys.modules)")

    assert "False False\n" == ebpftrace("run", "--", sys.executable, program).stdout
