# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ebpftrace.agent import metrics
from ebpftrace.agent.families import make_registry, render
from ebpftrace.agent.metrics import Listen, MetricsServer, parse_listen
from ebpftrace.agent.snapshot import (
    AgentSnapshot,
    CgroupMapSnapshot,
    ExportSnapshot,
    FunctionSnapshot,
    ProgramSnapshot,
    ReaderSnapshot,
    RingSnapshot,
)
from ebpftrace.errors import CommandError, ConfigError, UnsupportedError

SNAPSHOT = AgentSnapshot(
    started_at=1000.0,
    config_loads=2,
    config_failures=1,
    config_loaded_at=1500.0,
    programs=(
        ProgramSnapshot(
            name="sched",
            state="partial",
            error="no such hook",
            hooks_attached=2,
            hooks_failed=1,
            records=100,
            spans=90,
            undecoded={"short": 7, "skipped": 3},
            dropped={"ring_full": 5},
            rings=(RingSnapshot(name="events", size_bytes=4096, unread_bytes=64),),
            functions=(
                FunctionSnapshot(name="on_switch", hook="tp_btf/sched_switch", run_count=10, run_time_ns=2_000_000_000),
                FunctionSnapshot(name="on_wakeup", hook="tp_btf/sched_wakeup", attached=False),
            ),
        ),
        ProgramSnapshot(name="theirs", rings=(RingSnapshot(name="spans", size_bytes=8192),)),
    ),
    export=ExportSnapshot(
        exporter="otlp grpc",
        emitted=90,
        exported=80,
        failed=1,
        dropped={"queue_full": 2},
        queued_spans=7,
        queued_bytes=700,
        requests=9,
        retries=4,
        last_error="refused",
        last_error_at=1600.0,
    ),
    reader=ReaderSnapshot(last_round_at=1700.0, batches=12, errors=1, lost_records=8),
    cgroup_maps=(CgroupMapSnapshot(program="sched", entries=3, added=5, removed=2, failed=1, walks=4),),
)


def samples(text):
    """(name, sorted labels) → value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def scraped():
    return samples(render(make_registry(lambda: SNAPSHOT), "")[0].decode())


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("start_time_seconds", {}, 1000),
        ("config_loads_total", {}, 2),
        ("config_load_failures_total", {}, 1),
        ("config_last_load_timestamp_seconds", {}, 1500),
        ("program_state", {"program": "sched", "state": "partial"}, 1),
        ("program_state", {"program": "sched", "state": "running"}, 0),
        ("program_hooks", {"program": "sched", "state": "attached"}, 2),
        ("program_hooks", {"program": "sched", "state": "failed"}, 1),
        ("records_total", {"program": "sched"}, 100),
        ("spans_total", {"program": "sched"}, 90),
        ("undecoded_records_total", {"program": "sched", "reason": "short"}, 7),
        ("undecoded_records_total", {"program": "sched", "reason": "no_trace_id"}, 0),
        ("dropped_records_total", {"program": "sched", "reason": "ring_full"}, 5),
        ("dropped_records_total", {"program": "sched", "reason": "map_full"}, 0),
        ("ring_size_bytes", {"program": "sched", "ring": "events"}, 4096),
        ("ring_unread_bytes", {"program": "sched", "ring": "events"}, 64),
        (
            "function_runs_total",
            {"program": "sched", "function": "on_switch", "hook": "tp_btf/sched_switch"},
            10,
        ),
        (
            "function_run_seconds_total",
            {"program": "sched", "function": "on_switch", "hook": "tp_btf/sched_switch"},
            2,
        ),
        ("function_attached", {"program": "sched", "function": "on_wakeup", "hook": "tp_btf/sched_wakeup"}, 0),
        ("reader_alive", {}, 1),
        ("reader_last_round_timestamp_seconds", {}, 1700),
        ("reader_batches_total", {}, 12),
        ("reader_errors_total", {}, 1),
        ("reader_lost_records_total", {}, 8),
        ("export_info", {"exporter": "otlp grpc"}, 1),
        ("export_emitted_spans_total", {}, 90),
        ("export_exported_spans_total", {}, 80),
        ("export_failed_spans_total", {}, 1),
        ("export_dropped_spans_total", {"reason": "queue_full"}, 2),
        ("export_queue_spans", {}, 7),
        ("export_queue_bytes", {}, 700),
        ("export_requests_total", {}, 9),
        ("export_retries_total", {}, 4),
        ("export_failing_since_timestamp_seconds", {}, 0),
        ("export_last_error_timestamp_seconds", {}, 1600),
        ("cgroup_map_entries", {"program": "sched"}, 3),
        ("cgroup_map_changes_total", {"program": "sched", "change": "added"}, 5),
        ("cgroup_map_walks_total", {"program": "sched"}, 4),
    ],
)
def test_values(scraped, name, labels, value):
    """Each number of the snapshot is the sample that the reference names."""
    assert value == scraped[f"ebpftrace_{name}", tuple(sorted(labels.items()))]


def test_unknown_is_absent(scraped):
    """What cannot be told, and what a program does not count, is left out and not zero."""
    programs = {dict(labels).get("program") for name, labels in scraped if name == "ebpftrace_dropped_records_total"}
    unread = [dict(labels)["program"] for name, labels in scraped if name == "ebpftrace_ring_unread_bytes"]
    runs = [dict(labels)["function"] for name, labels in scraped if name == "ebpftrace_function_runs_total"]

    assert {"sched"} == programs
    assert ["sched"] == unread
    assert ["on_switch"] == runs


def test_process_metrics(scraped):
    """Memory and CPU of the agent itself are there."""
    assert scraped["process_resident_memory_bytes", ()] > 1 << 20
    assert ("process_cpu_seconds_total", ()) in scraped


def test_reference():
    """The reference page names every metric, and none that is not there."""
    page = Path(__file__).parents[2] / "docs/reference/metrics.md"
    text = render(make_registry(lambda: SNAPSHOT), "")[0].decode()

    assert set(re.findall(r"^# TYPE (ebpftrace_\w+)", text, re.MULTILINE)) == set(
        re.findall(r"^\| `(ebpftrace_\w+)", page.read_text(), re.MULTILINE)
    )


# --- the endpoint


class Agent:
    """Something to be looked at, and how often it was."""

    def __init__(self):
        now = time.time()
        self.snapshot = AgentSnapshot(
            started_at=now, programs=(ProgramSnapshot(name="sched"),), reader=ReaderSnapshot(last_round_at=now)
        )
        self.looks = 0

    def take(self):
        """What the daemon's snapshot() does."""
        self.looks += 1
        return self.snapshot


@pytest.fixture
def agent():
    return Agent()


@pytest.fixture
def server(agent):
    made = MetricsServer(agent.take, "127.0.0.1:0", connection_s=1.0)
    made.start()
    yield made
    made.close()


def get(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def test_metrics_page(server):
    """Metrics are served in the text format, and as OpenMetrics to who asks for that."""
    code, headers, body = get(server, "/metrics")
    _, open_headers, open_body = get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")

    assert 200 == code
    assert headers["Content-Type"].startswith("text/plain")
    assert 1 == samples(body.decode())["ebpftrace_healthy", ()]
    assert open_headers["Content-Type"].startswith("application/openmetrics-text")
    assert open_body.endswith(b"# EOF\n")


def test_health_page(server):
    """/healthz of an agent that is well is 200 and says what runs."""
    code, headers, body = get(server, "/healthz")
    said = json.loads(body)

    assert (200, "application/json") == (code, headers["Content-Type"])
    assert ("ok", [], {"sched": {"state": "running"}}) == (said["status"], said["reasons"], said["programs"])


def test_unhealthy_page(agent, server):
    """After a minute of failed exports /healthz is 503 with the reason; /livez is 200: a restart would lose more."""
    agent.snapshot = AgentSnapshot(
        started_at=time.time(),
        programs=(ProgramSnapshot(name="bio", state="failed", error="no BTF"), ProgramSnapshot(name="sched")),
        export=ExportSnapshot(failing_since=time.time() - 100, last_error="refused"),
    )
    code, _, body = get(server, "/healthz")
    said = json.loads(body)

    assert (503, "unhealthy") == (code, said["status"])
    assert "refused" in said["reasons"][0]
    assert {"state": "failed", "error": "no BTF"} == said["programs"]["bio"]
    assert 200 == get(server, "/livez")[0]


def test_dead_page(agent, server):
    """Without a reader /livez is 503, too."""
    agent.snapshot = AgentSnapshot(started_at=0.0, reader=ReaderSnapshot(alive=False))

    assert [503, 503] == [get(server, path)[0] for path in ("/healthz", "/livez")]


def test_other_requests(server):
    """HEAD has no body, other paths are 404, other methods 501; each connection is closed after its answer."""
    head = get(server, "/metrics", "HEAD")
    missing = get(server, "/../etc/passwd")
    post = get(server, "/metrics", "POST")

    assert (200, b"") == (head[0], head[2])
    assert int(head[1]["Content-Length"]) > 0
    assert 404 == missing[0]
    assert 501 == post[0]
    assert "close" == missing[1]["Connection"]


def test_flood(agent, server):
    """Asking often costs one look a second: the answers between are the same."""
    for path in ["/metrics", "/healthz"] * 20:
        get(server, path)

    assert agent.looks <= 3


def test_slow_clients(server):
    """Clients that say nothing, or a byte now and then, are cut off in time; others are answered again then."""
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
    dripping = silent[0]
    stop = threading.Event()

    def drip():
        with contextlib.suppress(OSError):
            while not stop.wait(0.1):
                dripping.send(b"G")

    thread = threading.Thread(target=drip)
    thread.start()
    time.sleep(0.3)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        get(server, "/healthz")
    time.sleep(1.2)
    code = get(server, "/healthz")[0]
    stop.set()
    thread.join()
    for connection in silent:
        connection.close()

    assert 200 == code
    assert server.stats()["refused"] >= 1
    assert server.stats()["cut_off"] >= 1


def test_reader_that_reads_nothing(agent):
    """Who asks for a large page and does not read it is cut off, and holds no thread for ever."""
    agent.snapshot = AgentSnapshot(
        started_at=0.0, programs=tuple(ProgramSnapshot(name=f"p{index}" * 50) for index in range(2000))
    )
    server = MetricsServer(agent.take, "127.0.0.1:0", connection_s=0.5)
    server.start()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    deadline = time.monotonic() + 20
    while not server.stats()["cut_off"] and time.monotonic() < deadline:
        time.sleep(0.05)
    cut_off = server.stats()["cut_off"]
    client.close()
    server.close()

    assert 1 == cut_off
    assert not server._server._open


def test_our_own_fault(agent, server, caplog):
    """An error while looking is logged, ends that connection, and the next one is served."""
    agent.take, good = None, agent.take
    server._server.pages._take = lambda: 1 / 0
    with pytest.raises(http.client.RemoteDisconnected):
        get(server, "/metrics")
    server._server.pages._take = good

    assert "ZeroDivisionError" in caplog.text
    assert 200 == get(server, "/healthz")[0]


def test_port_in_use(agent, server):
    """A port that somebody has is an error that says which, and what to do."""
    with pytest.raises(CommandError, match=rf"cannot listen on 127.0.0.1:{server.port}: .*in use.*--listen"):
        MetricsServer(agent.take, f"127.0.0.1:{server.port}")


def test_unknown_host(agent):
    """A name that is none is an error with that name."""
    with pytest.raises(CommandError, match=r"cannot listen on no-such-host\.invalid:9435"):
        MetricsServer(agent.take, "no-such-host.invalid:9435")


def test_given_socket(agent):
    """A listening socket of the service manager is served; any other descriptor is an error."""
    with socket.create_server(("127.0.0.1", 0)) as given, socket.socket() as plain:
        server = MetricsServer(agent.take, f"fd://{given.fileno()}")
        server.start()
        code = get(server, "/livez")[0]
        server.close()
        with pytest.raises(CommandError, match="no listening socket"):
            MetricsServer(agent.take, f"fd://{plain.fileno()}")

    assert 200 == code


def test_close(agent):
    """Closing frees the port at once, may be done twice, and before start()."""
    server = MetricsServer(agent.take, "127.0.0.1:0")
    port = server.port
    server.start()
    server.close()
    server.close()
    again = MetricsServer(agent.take, f"127.0.0.1:{port}")
    again.close()

    assert port == again.port
    assert "ebpftrace-http" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9435", Listen("127.0.0.1", 9435)),
        (":9435", Listen("", 9435)),
        ("localhost:0", Listen("localhost", 0)),
        ("[::1]:9435", Listen("::1", 9435)),
        ("fd://3", Listen(fd=3)),
        ("none", None),
    ],
)
def test_listen(text, expected):
    """An address is host and port, all addresses and a port, a descriptor, or none; it prints as it was written."""
    assert expected == parse_listen(text)
    assert expected is None or text == str(expected)


@pytest.mark.parametrize("text", ["", "9435", "::1:9435", "[::1]", "host:", "host:70000", "fd://x", "fd://0", "[h]:1"])
def test_listen_wrong(text):
    """Anything else is an error that shows what may be written."""
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        parse_listen(text)


def test_all_addresses(agent):
    """Without a host both IPv4 and IPv6 are answered, where there is IPv6."""
    server = MetricsServer(agent.take, ":0")
    server.start()
    code = get(server, "/livez")[0]
    server.close()

    assert 200 == code


def test_no_prometheus_client(agent, monkeypatch):
    """Without the client library the error says what to install, and that one can do without."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "ebpftrace.agent.families")

    with pytest.raises(UnsupportedError, match=r"pip install 'ebpftrace\[agent\]', or --listen none"):
        MetricsServer(agent.take, "127.0.0.1:0")


def test_default_is_loopback():
    """Nobody but this machine is served unless told so."""
    assert "127.0.0.1" == parse_listen(metrics.DEFAULT_LISTEN).host
