# SPDX-License-Identifier: Apache-2.0
"""The agent end to end: shipped programs, a real collector on loopback, signals."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import machine
import pytest
from agents import COMMAND, Agent, agent, of, own, plain, refused
from otlp_servers import GrpcCollector, HttpCollector, running


@pytest.fixture
def collector():
    """An OTLP/HTTP collector."""
    with running(HttpCollector()) as server:
        yield server


@pytest.fixture
def root():
    """A shell of a name of its own, so that nobody else's processes are traced; a root has room for 63 bytes."""
    with tempfile.TemporaryDirectory(prefix="ebt-") as folder:
        path = Path(folder) / "root-shell"
        shutil.copy(shutil.which("dash") or "/bin/sh", path)
        yield path


def exec_agent(tmp_path, root, endpoint, *args, **settings):
    """An agent that traces what `root` runs."""
    return agent(
        tmp_path,
        "--config-names",
        "exec-trace",
        "--set",
        f"exec-trace.roots={root}",
        *args,
        endpoint=endpoint,
        **settings,
    )


def run_tree(root, code="env true; exit 3"):
    """Run a little tree of processes below the root."""
    return subprocess.run([root, "-c", code], check=False).returncode


def check_tree(spans, root, pid_service="kernel"):
    """The spans of `run_tree`: the root with what it ran below it, typed."""
    by_name = {span["name"]: span for span in of(spans, "exec")}
    top, env, true = by_name["exec root-shell"], by_name["exec env"], by_name["exec true"]

    assert top["parent"] == ""
    assert (top["id"], top["trace"]) == (env["parent"], env["trace"])
    assert true["trace"] == top["trace"]
    assert (2, "exit code 3") == top["status"]
    assert top["start"] <= env["start"] <= env["end"] <= top["end"]
    attributes = top["attributes"]
    assert attributes["process.executable.path"] == str(root)
    assert attributes["process.exit.code"] == 3
    assert attributes["process.command_args"] == (str(root), "-c", "env true; exit 3")
    assert isinstance(attributes["process.pid"], int)
    assert {pid_service} == {span["service"] for span in by_name.values()}


@pytest.mark.parametrize(("server", "protocol"), [(HttpCollector, "http/protobuf"), (GrpcCollector, "grpc")])
@pytest.mark.parametrize("encoder", ["native", "sdk"])
def test_spans_arrive(tmp_path, root, server, protocol, encoder):
    """What a program records arrives at a collector, by either protocol and either encoder."""
    if encoder == "sdk" and protocol == "grpc":
        pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the SDK's gRPC exporter is not installed")
    with running(server()) as collector:
        env = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        with exec_agent(tmp_path, root, collector.url, "--encoder", encoder, env=env):
            assert run_tree(root) == 3
        check_tree(plain(collector), root)


def test_own_traces(tmp_path, root, collector):
    """Start and stop are traces of the agent: each step with its time, hooks named."""
    with exec_agent(tmp_path, root, collector.url):
        pass
    spans = own(plain(collector))
    names = [span["name"] for span in spans]
    start = next(span for span in spans if span["name"] == "agent.start")
    load = next(span for span in spans if span["name"] == "load exec-trace")

    assert load["parent"] == start["id"]
    assert {"open", "read config", "prepare", "load", "attach", "give up privileges"} <= set(names)
    assert "attach tp_btf/sched_process_exec" in names
    assert {"agent.stop", "detach exec-trace", "drain"} <= set(names)
    assert all(span["status"][0] != 2 for span in spans)


def test_failed_start_is_exported(tmp_path, collector):
    """A start that fails exits with 1, says why, and its trace arrives with the kernel's words as errors."""
    (tmp_path / "bad-trace.bpf.c").write_text(
        '#include "ebpftrace.bpf.h"\n'
        'char LICENSE[] SEC("license") = "Dual BSD/GPL";\n'
        "struct bad_record { struct ebt_span span; };\n"
        "EBT_RECORD(bad_record);\n"
        'SEC("tp_btf/sched_process_exec")\n'
        "int BPF_PROG(on_exec, struct task_struct *task)\n"
        "{\n\treturn *(volatile int *)(long)(task->pid + 8); /* no verifier lets this pass */\n}\n"
    )
    (tmp_path / "bad-trace.yaml").write_text("tracing:\n  spans:\n    - {ringbuf: events, struct: bad_record}\n")
    subprocess.run([COMMAND, "build", tmp_path / "bad-trace.bpf.c"], check=True, capture_output=True)
    env = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}

    code, said = refused(str(tmp_path / "bad-trace.yaml"), env=env)

    assert code == 1
    assert "no program runs: bad: cannot load the BPF object 'bad-trace'" in said
    errors = {span["name"]: span for span in own(plain(collector)) if span["status"][0] == 2}
    assert {"agent.start", "load bad-trace", "load"} == set(errors)
    assert "invalid mem access" in errors["load"]["attributes"]["ebpftrace.agent.libbpf.log"]


def test_sigterm_loses_nothing(tmp_path, root, collector):
    """With a collector that is up, what was recorded before SIGTERM arrives, and the counters say the same."""
    with exec_agent(tmp_path, root, collector.url) as running_agent:
        assert run_tree(root, "i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i+1)); done") == 0
        assert running_agent.end() == 0
    found = of(plain(collector), "exec")
    totals = running_agent.totals()

    assert len(found) == 301
    assert totals["records"] == 301
    assert (totals["undecoded"], totals["lost_in_kernel"], totals["failed"], totals["dropped"]) == (0, 0, 0, 0)
    assert totals["exported"] == len(collector.spans)


def test_kill_leaves_nothing_in_the_kernel(tmp_path, root, collector):
    """After kill -9 no program, map or link of the agent is left."""
    process = Agent(
        tmp_path, "--config-names", "exec-trace", "--set", f"exec-trace.roots={root}", endpoint=collector.url
    )
    process.ready()
    ids = machine.bpf_ids(process.pid)

    assert process.end(signal.SIGKILL) == -signal.SIGKILL
    assert ids
    assert machine.remaining(ids) == []


def test_collector_down_and_back(tmp_path, root, collector):
    """While the collector is away spans wait; when it is back all of them arrive, and the log has two lines of it."""
    with exec_agent(tmp_path, root, collector.url) as running_agent:
        run_tree(root)
        machine.until(lambda: len(of(plain(collector), "exec")) >= 3)
        collector.stop()
        for _ in range(10):
            run_tree(root)
        machine.until(lambda: running_agent.metrics().get("ebpftrace_export_retries_total", 0) > 0)
        collector.start()
        arrived = machine.until(lambda: len(of(plain(collector), "exec")) >= 33, timeout_s=15)
    lines = [line for line in running_agent.log() if line["logger"] == "ebpftrace.otlp"]

    assert arrived
    assert len(of(plain(collector), "exec")) == 33
    assert len(lines) == 2
    assert running_agent.totals()["dropped"] == 0


def test_collector_that_stays_down(tmp_path, root):
    """A collector that never answers costs the end no more than its deadline; the exit code and the counters tell."""
    process = Agent(
        tmp_path, "--config-names", "exec-trace", "--set", f"exec-trace.roots={root}", "--shutdown-timeout", "1",
        endpoint="http://127.0.0.1:9",
    )  # fmt: skip
    process.ready()
    run_tree(root)

    assert process.end(timeout_s=8) == 1
    totals = process.totals()
    assert totals["records"] == 3
    assert totals["exported"] == 0
    assert totals["dropped"] >= 3


def test_metrics_and_health(tmp_path, root, collector):
    """The counters are served, and health is well while a program runs."""
    with exec_agent(tmp_path, root, collector.url) as running_agent:
        run_tree(root)
        machine.until(lambda: running_agent.metrics().get('ebpftrace_spans_total{program="exec"}') == 3)
        metrics = running_agent.metrics()
        status, _ = running_agent.get("/healthz")

    assert metrics['ebpftrace_records_total{program="exec"}'] == 3
    assert metrics['ebpftrace_program_state{program="exec",state="running"}'] == 1
    assert metrics['ebpftrace_undecoded_records_total{program="exec",reason="short"}'] == 0
    assert status == 200


def test_privileges_are_given_up(tmp_path, root, collector):
    """A running agent holds CAP_BPF and what it reads symbols with; CAP_PERFMON waits for a reload; no more."""
    with exec_agent(tmp_path, root, collector.url) as running_agent:
        sets = set()
        for status in Path(f"/proc/{running_agent.pid}/task").glob("*/status"):
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            sets.add((lines["CapEff"], lines["CapPrm"], lines["CapBnd"], lines["NoNewPrivs"]))

    bpf, perfmon, syslog = 1 << 39, 1 << 38, 1 << 34
    assert {(f"{bpf | syslog:016x}", f"{bpf | perfmon | syslog:016x}", f"{0:016x}", "1")} == sets


@pytest.mark.parametrize(
    ("args", "env", "code", "words"),
    [
        ([], {}, 2, "say which programs to run"),
        (["--config-names", "exec-trcae"], {}, 2, "exec-trace"),
        (["--config-names", "exec-trace", "--set", "exec-trace.roots"], {}, 2, "PROGRAM.KNOB=VALUE"),
        (["--config-names", "exec-trace", "--set", "bio-trace.x=1"], {}, 2, "there is no program 'bio-trace' among"),
        (["--config-names", "exec-trace", "--set", "exec-trace.rootz=1"], {}, 1, "has no knob 'rootz'"),
        (["--config-names", "exec-trace", "--ring-kib", "5"], {}, 2, "power of two"),
        (["--config-names", "exec-trace", "--listen", "localhost"], {}, 2, "--listen"),
        (["--config-names", "exec-trace", "--capabilities-keep", "cap_fly"], {}, 2, "there is no capability CAP_FLY"),
        (
            ["--config-names", "exec-trace"],
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"},
            2,
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
        (["--config-names", "exec-trace"], {"OTEL_TRACES_EXPORTER": "consol"}, 2, "which is not installed; known here"),
        (["--config-names", "exec-trace", "--output", "/nowhere/x"], {}, 2, "cannot write spans to /nowhere/x"),
        (["--config-dir", "/nowhere", "--config-names", "x"], {}, 2, "/nowhere"),
    ],
)
def test_wrong_usage(args, env, code, words):
    """What is wrong is said in one line with how to mend it, and nothing is started."""
    ended, said = refused(*args, env=env)

    assert code == ended
    assert words in said
    assert "Traceback" not in said


def test_strict(tmp_path):
    """With --strict a hook that cannot be had ends the start; without, the rest of the program runs."""
    source = (
        '#include "ebpftrace.bpf.h"\nchar LICENSE[] SEC("license") = "Dual BSD/GPL";\n'
        "struct half_record { struct ebt_span span; };\nEBT_RECORD(half_record);\n"
        'SEC("tp_btf/sched_process_exec")\nint BPF_PROG(on_exec, struct task_struct *task)\n{\n\treturn 0;\n}\n'
        'SEC("tp_btf/no_such_tracepoint")\nint BPF_PROG(nowhere, struct task_struct *task)\n{\n\treturn 0;\n}\n'
    )
    (tmp_path / "half.bpf.c").write_text(source)
    (tmp_path / "half.yaml").write_text("tracing:\n  spans:\n    - {ringbuf: events, struct: half_record}\n")
    subprocess.run([COMMAND, "build", tmp_path / "half.bpf.c"], check=True, capture_output=True)

    code, said = refused("--strict", str(tmp_path / "half.yaml"))
    with agent(tmp_path, str(tmp_path / "half.yaml")) as running_agent:
        metrics = running_agent.metrics()

    assert code == 1
    assert "this kernel has no tracepoint no_such_tracepoint" in said
    assert metrics['ebpftrace_program_state{program="half",state="partial"}'] == 1
    assert metrics['ebpftrace_program_hooks{program="half",state="failed"}'] == 1
