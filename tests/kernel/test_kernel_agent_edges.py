# SPDX-License-Identifier: Apache-2.0
"""The agent where things go wrong at a bad moment: reloads that fail, signals at the end, names and limits."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import machine
import pytest
from agents import COMMAND, Agent, agent, own, plain, refused
from otlp_servers import HttpCollector, running

DATA = Path(__file__).parent.parent / "data/programs"
FIRST = 0x40000000
HEAD = '#include "ebpftrace.bpf.h"\nchar LICENSE[] SEC("license") = "Dual BSD/GPL";\n'
GROUPS = (
    "struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 4096); __type(key, __u64); __type(value, __u64); }"
    ' groups SEC(".maps");\n'
)
GROUPS_YAML = "cgroup_id_map: {name: groups, type: hash, regexps: ['^/']}\n"
NO_HOOK = 'SEC("kprobe/no_such_function_anywhere")\nint nowhere(void *context)\n{\n\treturn 0;\n}\n'
NO_TRACEPOINT = 'SEC("tp_btf/no_such_tracepoint")\nint BPF_PROG(nowhere, void *what)\n{\n\treturn 0;\n}\n'


def build(folder, name, source, yaml):
    """Compile a program and describe it."""
    (folder / f"{name}.bpf.c").write_text(source)
    (folder / f"{name}.yaml").write_text(yaml)
    subprocess.run([COMMAND, "build", folder / f"{name}.bpf.c"], check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The numbered program, compiled once."""
    folder = tmp_path_factory.mktemp("numbered")
    shutil.copy(DATA / "numbered.yaml", folder)
    subprocess.run(
        [COMMAND, "build", DATA / "numbered.bpf.c", "-o", folder / "numbered.bpf.o"], check=True, capture_output=True
    )
    return folder


@pytest.fixture
def programs(tmp_path, built):
    """A directory with the numbered program, to be changed."""
    folder = tmp_path / "programs"
    shutil.copytree(built, folder)
    return folder


@pytest.fixture
def collector():
    """An OTLP/HTTP collector."""
    with running(HttpCollector()) as server:
        yield server


def call(count):
    """Make numbered calls."""
    for number in range(count):
        try:
            os.getpgid(FIRST + number)
        except ProcessLookupError:
            continue


def numbered(programs, *args):
    """The arguments of an agent that runs the numbered program."""
    return ("--config-dir", programs, "--config-names", "numbered", *args)


def test_mended_mistake_is_forgotten(tmp_path, programs):
    """A mistake that is taken back is no failure any more: the reload after it is a success."""
    yaml = programs / "numbered.yaml"
    right = yaml.read_text()
    with agent(tmp_path, *numbered(programs)) as daemon:
        yaml.write_text(right.replace("name: number,", "name: nubmer,"))
        daemon.reload()
        time.sleep(1.1)  # metrics are made anew once a second
        wrong = daemon.metrics()
        yaml.write_text(right)
        daemon.reload()
        time.sleep(1.1)
        mended = daemon.metrics()

    counters = ("ebpftrace_config_loads_total", "ebpftrace_config_load_failures_total")
    assert [wrong[each] for each in counters] == [1, 1]
    assert [mended[each] for each in counters] == [2, 1]
    assert [line["fields"]["complete"] for line in daemon.log() if line["message"] == "reloaded"] == [False, True]


def test_hangup_while_stopping(tmp_path, programs):
    """SIGHUP while the agent ends changes neither what it does nor its exit code."""
    process = Agent(tmp_path, *numbered(programs, "--shutdown-timeout", "2"), endpoint="http://127.0.0.1:9").ready()
    call(3)
    process.process.send_signal(signal.SIGTERM)
    process.wait_for("STOPPING=1")
    process.process.send_signal(signal.SIGHUP)
    process.process.wait(10)

    assert process.end() == 1
    assert process.totals()["records"] == 3


def test_second_signal_ends_at_once(tmp_path, programs):
    """A second SIGTERM does not wait for the collector, and nothing stays in the kernel."""
    process = Agent(tmp_path, *numbered(programs, "--shutdown-timeout", "60"), endpoint="http://127.0.0.1:9").ready()
    ids = machine.bpf_ids(process.pid)
    call(3)
    process.process.send_signal(signal.SIGTERM)
    process.wait_for("STOPPING=1")
    time.sleep(0.5)

    assert process.end() == -signal.SIGTERM
    assert machine.remaining(ids) == []


def test_names_that_collide(programs):
    """Two programs that spans would call the same are refused."""
    for suffix in (".yaml", ".bpf.o"):
        shutil.copy(programs / f"numbered{suffix}", programs / f"numbered-trace{suffix}")

    code, said = refused("--config-dir", str(programs), "--config-names", "numbered,numbered-trace")

    assert code == 2
    assert "numbered-trace.yaml" in said
    assert "'numbered'" in said


def test_files_behind_links(tmp_path, built):
    """Files that are links into a directory that is exchanged, as Kubernetes does it, are read again at a reload."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    for version in ("one", "two"):
        shutil.copytree(built, folder / version)
    (folder / "data").symlink_to("one")
    for name in ("numbered.yaml", "numbered.bpf.o"):
        (folder / name).symlink_to(f"data/{name}")
    with agent(tmp_path, str(folder / "numbered.yaml")) as daemon:
        yaml = folder / "two/numbered.yaml"
        yaml.write_text(yaml.read_text() + "knobs: {copies: 3}\n")
        (folder / "new").symlink_to("two")
        (folder / "new").rename(folder / "data")
        daemon.reload()
        call(2)
    assert daemon.totals()["records"] == 6


def test_strict_reload(tmp_path, programs):
    """With --strict an object that lacks a hook does not replace one that has all of them."""
    source = (DATA / "numbered.bpf.c").read_text() + NO_TRACEPOINT
    with agent(tmp_path, *numbered(programs, "--strict")) as daemon:
        before = machine.bpf_ids(daemon.pid)
        build(programs, "numbered", source, (programs / "numbered.yaml").read_text())
        daemon.reload()
        after = machine.bpf_ids(daemon.pid)
        metrics = daemon.metrics()

    assert after == before
    assert metrics["ebpftrace_config_load_failures_total"] == 1
    assert any("no tracepoint no_such_tracepoint" in line["message"] for line in daemon.log())


def test_failed_loads_leave_nothing(tmp_path, programs):
    """A program that fails at each reload costs no file descriptor."""
    yaml = "tracing:\n  spans:\n    - {ringbuf: events, struct: lame_record}\n" + GROUPS_YAML
    record = "struct lame_record { struct ebt_span span; };\nEBT_RECORD(lame_record);\n"
    build(programs, "lame", HEAD + record + GROUPS + NO_HOOK, yaml)
    names = ("--config-dir", programs, "--config-names", "numbered,lame")
    with agent(tmp_path, *names) as daemon:
        daemon.reload()
        before = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
        daemon.reload()
        daemon.reload()
        after = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))

    assert after == before


def test_threads_of_a_reload(tmp_path, programs):
    """A thread that a reload starts holds no more than the others: CAP_PERFMON was for loading."""
    source = (DATA / "numbered.bpf.c").read_text() + GROUPS
    build(programs, "numbered", source, (programs / "numbered.yaml").read_text() + GROUPS_YAML)
    with agent(tmp_path, *numbered(programs)) as daemon:
        object_file = programs / "numbered.bpf.o"
        object_file.write_bytes(object_file.read_bytes() + b"\0")
        daemon.reload()
        threads = [
            line.split()[1]
            for status in Path(f"/proc/{daemon.pid}/task").glob("*/status")
            for line in status.read_text().splitlines()
            if line.startswith("CapEff:")
        ]

    assert len(threads) > 3  # main, reader, HTTP, cgroups
    assert set(threads) == {f"{1 << 39 | 1 << 34:016x}"}


def test_too_many_rings(tmp_path, programs):
    """A program that brings more ring buffers than can be read is refused by name, and the others run."""
    ring = 'struct {{ __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 65536); }} ring{} SEC(".maps");\n'
    source = HEAD + "".join(ring.format(number) for number in range(64))
    source += 'SEC("tp_btf/sched_process_exec")\nint BPF_PROG(on_exec, struct task_struct *task)\n{\n\treturn 0;\n}\n'
    source += "struct wide_record { struct ebt_span span; };\nEBT_RECORD(wide_record);\n"
    spans = "".join(f"    - {{ringbuf: ring{number}, struct: wide_record}}\n" for number in range(64))
    build(programs, "wide", source, "tracing:\n  spans:\n" + spans)
    with agent(tmp_path, "--config-dir", programs, "--config-names", "numbered,wide", "--ring-kib", "64") as daemon:
        call(3)
        machine.until(lambda: daemon.metrics()['ebpftrace_records_total{program="numbered"}'] == 3, interval_s=0.5)
        metrics = daemon.metrics()
        daemon.reload()
    errors = [line["message"] for line in daemon.log() if line["level"] == "error"]

    assert metrics['ebpftrace_program_state{program="wide",state="failed"}'] == 1
    assert metrics['ebpftrace_program_state{program="numbered",state="running"}'] == 1
    assert len(errors) == 2  # at the start, and at the reload
    assert all("64 ring buffers" in message for message in errors)


@pytest.mark.parametrize("content", [b"[" * 20_000, b"\0", b"\xff\xfe", b"a: &a [*a]", b"", b"- 1"])
def test_rubbish_at_a_reload(tmp_path, programs, content):
    """Whatever is in the file at a reload, the agent goes on as it was."""
    with agent(tmp_path, *numbered(programs)) as daemon:
        (programs / "numbered.yaml").write_bytes(content)
        daemon.reload()
        call(3)
    assert daemon.totals()["records"] == 3
    assert "Traceback" not in daemon.log_text()
    assert daemon.end() == 0


def test_rubbish_for_an_object_at_a_reload(tmp_path, programs):
    """An object that was cut short, or is none, changes nothing."""
    object_file = programs / "numbered.bpf.o"
    whole = object_file.read_bytes()
    with agent(tmp_path, *numbered(programs)) as daemon:
        for rubbish in (b"", b"\x7fELF", whole[: len(whole) // 2], whole[:-100]):
            object_file.write_bytes(rubbish)
            daemon.reload()
        call(3)
    assert daemon.totals()["records"] == 3


def test_lost_by_the_sdk(tmp_path, programs):
    """The exit code tells of lost spans also when the SDK's exporters lost them."""
    env = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    process = Agent(
        tmp_path, *numbered(programs, "--encoder", "sdk", "--shutdown-timeout", "3"),
        env=env, endpoint="http://127.0.0.1:9",
    )  # fmt: skip
    process.ready()
    call(3)

    assert process.end() == 1


def test_port_in_use(programs, collector):
    """A start that fails for its own port is exported as well."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        env = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        code, said = refused(*map(str, numbered(programs)), "--listen", listen, env=env)

    assert code == 1
    assert f"cannot listen on {listen}" in said
    assert {"agent.start", "listen"} == {span["name"] for span in own(plain(collector)) if span["status"][0] == 2}


def test_exporter_missing(programs):
    """Where the exporter is why it does not start, that is one line: not also that this could not be exported."""
    code, said = refused(*map(str, numbered(programs)), env={"OTEL_TRACES_EXPORTER": "nonesuch"})

    assert code == 2
    assert 1 == sum("nonesuch" in line for line in said.splitlines())


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "1e9"])
def test_shutdown_timeout(programs, seconds):
    """A time that cannot be waited for is refused at the start, not found out at the end."""
    code, said = refused(*map(str, numbered(programs)), "--shutdown-timeout", seconds)

    assert code == 2
    assert "--shutdown-timeout" in said


def test_root_in_other_bytes(tmp_path):
    """A path on the command line may be of any bytes."""
    with agent(tmp_path, "--config-names", "exec-trace", "--set", "exec-trace.roots=/nowhere/\udcff") as daemon:
        state = daemon.metrics()['ebpftrace_program_state{program="exec",state="running"}']

    assert state == 1


def test_knob_that_is_not_there(programs):
    """A knob that a program does not have is refused by naming those that it has, not what the loader sets."""
    _, said = refused(*map(str, numbered(programs)), "--set", "numbered.rate=1")

    assert "has no knob 'rate'" in said
    assert "ebt_" not in said


def test_ring_that_nobody_reads(tmp_path, programs):
    """A ring buffer that no span names is told of."""
    ring = 'struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 65536); } forgotten SEC(".maps");\n'
    source = (DATA / "numbered.bpf.c").read_text() + ring
    build(programs, "numbered", source, (programs / "numbered.yaml").read_text())
    with agent(tmp_path, *numbered(programs)) as daemon:
        warnings = [line["message"] for line in daemon.log() if line["level"] == "warning"]

    assert any("forgotten" in message and "numbered.yaml" in message for message in warnings)


def test_drops_only_grow(tmp_path, programs):
    """What the kernel dropped before a reload is counted after it, for the program and in the last line."""
    yaml = programs / "numbered.yaml"
    yaml.write_text(yaml.read_text() + "knobs: {copies: 200}\n")
    with agent(tmp_path, *numbered(programs, "--ring-kib", "4")) as daemon:
        call(1)
        name = 'ebpftrace_dropped_records_total{program="numbered",reason="ring_full"}'
        machine.until(lambda: daemon.metrics()[name] > 0, interval_s=0.5)
        before = daemon.metrics()[name]
        (programs / "numbered.bpf.o").write_bytes((programs / "numbered.bpf.o").read_bytes() + b"\0")
        daemon.reload()
        time.sleep(1.1)
        after = daemon.metrics()[name]
    assert before > 100
    assert after == before
    assert daemon.totals()["lost_in_kernel"] == before


def test_rings_and_functions_in_metrics(tmp_path, programs):
    """The metrics say how full a ring is, and while the kernel counts them, how often a function ran."""
    with agent(tmp_path, *numbered(programs)) as daemon:
        enabled = Path("/proc/sys/kernel/bpf_stats_enabled")
        before = enabled.read_text()
        enabled.write_text("1")
        try:
            call(3)
            machine.until(lambda: daemon.metrics().get('ebpftrace_records_total{program="numbered"}') == 3)
        finally:
            enabled.write_text(before)
        metrics = daemon.metrics()
    runs = 'ebpftrace_function_runs_total{function="sys_enter",hook="tp_btf/sys_enter",program="numbered"}'

    assert metrics['ebpftrace_ring_unread_bytes{program="numbered",ring="events"}'] == 0
    assert metrics[runs] > 3


def test_metrics_during_reloads(tmp_path, programs):
    """Metrics asked for while objects are replaced are whole: each series once, no counter goes back, no error."""
    from ebpftrace.agent.fleet import Fleet
    from ebpftrace.agent.program import Source
    from ebpftrace.agent.startup import SelfTrace
    from ebpftrace.config.files import find
    from ebpftrace.spans.pipeline import SdkPipeline
    from ebpftrace.spans.reader import Reader

    yaml = programs / "numbered.yaml"
    yaml.write_text(yaml.read_text() + "knobs: {copies: 200}\n")
    [files] = find(("numbered",), programs)
    fleet = Fleet(4096)
    fleet.load([Source.read(files)], SelfTrace("start"))
    call(1)  # nobody reads yet: most are dropped
    reader = Reader(fleet.rings(), (pipeline := SdkPipeline(fleet.layouts(), lambda spans: None)).consume)
    looks = []
    try:
        [old] = fleet.programs
        expected = old.drops()
        describe = pipeline.replace

        def replace(rings):
            describe(rings)
            looks.append([each.dropped["ring_full"] for each in fleet.snapshots()])

        pipeline.replace = replace
        files.object.write_bytes(files.object.read_bytes() + b"\0")
        whole = fleet.change([Source.read(files)], SelfTrace("reload"), reader, pipeline)
        looks.append([each.dropped["ring_full"] for each in fleet.snapshots()])
    finally:
        reader.close()
        fleet.close()

    assert whole
    assert expected["ring_full"] > 100
    assert looks == [[expected["ring_full"]]] * 3  # both attached; the old one taken out; done
    assert old.drops() == expected  # also when its object is closed
    assert old.runs()[0][1:] == (0, 0)
