# SPDX-License-Identifier: Apache-2.0
"""The agent, and an application, with an OpenTelemetry Collector and Jaeger; what they show is what the kernel saw."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import time
from collections import Counter
from pathlib import Path

import backends
import machine
import pytest
from agents import COMMAND, agent
from backends import Jaeger, Otelcol, by_id, expected, in_any_order, parsed, running
from harness import App, run

from ebpftrace._version import version
from ebpftrace.spans.model import KernelSpan
from ebpftrace.spans.resource import kernel_resource

DATA = Path(__file__).parent.parent / "data/programs"
SCOPE = ("ebpftrace.kernel", version)
FIRST = 0x40000000  # of numbered.bpf.c
GIVEN = 0x67697665  # of given.bpf.c
RECORD = struct.Struct("<QII16s8s8sQ 16s8s16s8s QQqQdIiBB?5s 32s16s32s32s40s")

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The two programs whose records the tests choose, compiled once."""
    folder = tmp_path_factory.mktemp("programs")
    for name in ("given", "numbered"):
        command = [COMMAND, "build", DATA / f"{name}.bpf.c", "-o", folder / f"{name}.bpf.o"]
        subprocess.run(command, check=True, capture_output=True)
        (folder / f"{name}.yaml").write_bytes((DATA / f"{name}.yaml").read_bytes())
    return folder


@pytest.fixture
def otelcol(tmp_path):
    """A Collector."""
    with running(Otelcol, tmp_path) as collector:
        yield collector


@pytest.fixture
def jaeger(tmp_path):
    """A Jaeger."""
    with running(Jaeger, tmp_path) as backend:
        yield backend


def sending(tmp_path, program, backend, *, protocol="http/protobuf", encoder="native", **variables):
    """An agent with one program, by its YAML file, whose spans a backend gets."""
    if (encoder, protocol) == ("sdk", "grpc"):
        pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the SDK's gRPC exporter is not installed")
    env = {**backend.env(protocol), **variables}
    return agent(tmp_path, program, "--encoder", encoder, env=env, endpoint=env["OTEL_EXPORTER_OTLP_ENDPOINT"])


# --- every field


def given_spans():
    """A trace, with times of CLOCK_MONOTONIC: its root has everything; a child for each kind, and for each status."""
    trace, now = int.from_bytes(os.urandom(16), "big") | 1, time.monotonic_ns()
    attributes = {
        "ebpftrace.program": "given",
        "ebpftrace.hook": "tp_btf/sys_enter",
        "test.least": -(1 << 63),
        "test.most": str((1 << 64) - 1),  # OTLP has no integers of this size
        "test.ratio": 0.1,
        "test.colour": "GREEN",
        "test.number": -7,
        "test.flag": True,
        "test.address": "0001feff10",
        "test.words": ("a", "ünï", "c"),
        "test.text": "text",
    }
    few = {**attributes, "test.flag": False, "test.ratio": 2.0, "test.most": 1, "test.colour": "RED"}
    del few["test.number"]  # the YAML leaves a zero out
    root = {
        "trace_id": trace,
        "span_id": 0x80000000000000FF,
        "parent_span_id": 0,
        "name": "given wörk",
        "start_ns": now,
        "end_ns": now + 1_000_000_001,
        "attributes": attributes,
        "program": "given",
        "error": "no röom",
        "service": "wörker",
        "kind": "server",
        "links": ((trace, 1), (1 << 127 | 7, 1 << 63)),
        "events": (("opened", now + 1), ("has been closed", now + 1_000_000_000)),
    }
    child = {**root, "parent_span_id": root["span_id"], "attributes": few, "error": None, "service": ""}
    child |= {"links": root["links"][:1], "events": root["events"][:1]}
    changes = [{"kind": kind} for kind in ("internal", "server", "client", "producer", "consumer")]
    changes += [{"status": status, "links": (), "events": ()} for status in ("unset", "ok", "error")]
    spans = [KernelSpan(**root)]
    return spans + [KernelSpan(**{**child, "span_id": 1 + n, **change}) for n, change in enumerate(changes)]


def give(span):
    """Have the kernel see the record of this span."""
    values = span.attributes
    links = [(*link, *(0, 0)) for link in span.links]
    (trace_1, span_1, *_), (trace_2, span_2, *_) = (*links, (0, 0), (0, 0))[:2]
    times = [time_ns for _, time_ns in span.events]
    record = RECORD.pack(
        span.start_ns, 1, RECORD.size,
        span.trace_id.to_bytes(16, "big"), span.parent_span_id.to_bytes(8, "big"), span.span_id.to_bytes(8, "big"),
        span.end_ns - span.start_ns,
        trace_1.to_bytes(16, "big"), span_1.to_bytes(8, "big"), trace_2.to_bytes(16, "big"), span_2.to_bytes(8, "big"),
        *(*times, 0, 0)[:2],
        values["test.least"], int(values["test.most"]), values["test.ratio"],
        {"RED": 1, "GREEN": 2}[values["test.colour"]], values.get("test.number", 0),
        ["", "internal", "server", "client", "producer", "consumer"].index(span.kind),
        ["unset", "ok", "error"].index(span.status),
        values["test.flag"], bytes.fromhex(values["test.address"]),
        span.name.encode(), span.service.encode(), (span.error or "").encode(),
        b"".join(word.encode() + b"\0" for word in values["test.words"]), values["test.text"].encode(),
    )  # fmt: skip
    _libc.prctl(GIVEN, ctypes.create_string_buffer(record, RECORD.size), 0, 0, 0)


def on_the_wall(span, offset_ns):
    """The same span, with times of CLOCK_REALTIME."""
    fields = {name: getattr(span, name) for name in span.__struct_fields__}
    fields |= {"start_ns": span.start_ns + offset_ns, "end_ns": span.end_ns + offset_ns}
    return KernelSpan(**fields | {"events": tuple((name, at + offset_ns) for name, at in span.events)})


def check_given(given, found):
    """What arrived is what was given, in every field: one offset between the clocks makes all times equal."""
    found = in_any_order(by_id(found))
    truth_ns = time.time_ns() - time.monotonic_ns()
    offset_ns = min(span["start"] for span in found) - given[0].start_ns
    resource = {**kernel_resource().attributes, "deployment.environment.name": "test"}

    wanted = by_id(expected(on_the_wall(span, offset_ns), resource, SCOPE) for span in given)
    assert in_any_order(wanted) == found
    assert abs(offset_ns - truth_ns) < 1_000_000


WHERE = {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("encoder", ["native", "sdk"])
def test_collector_gets_what_the_kernel_saw(tmp_path, programs, otelcol, protocol, encoder):
    """Ids, times, kind, status, typed attributes, links, events, resource and scope are in the file, exactly."""
    given = given_spans()
    with sending(tmp_path, programs / "given.yaml", otelcol, protocol=protocol, encoder=encoder, **WHERE) as daemon:
        for span in given:
            give(span)
        assert daemon.end() == 0
    otelcol.stop()

    check_given(given, [span for span in otelcol.spans() if span["trace"] == f"{given[0].trace_id:032x}"])
    assert len(otelcol.spans()) == daemon.totals()["exported"]


@pytest.mark.parametrize(("encoder", "protocol"), [("native", "grpc"), ("sdk", "http/protobuf")])
def test_jaeger_shows_what_the_kernel_saw(tmp_path, programs, jaeger, encoder, protocol):
    """Jaeger returns the trace as it was given, and knows its services, the agent's own too."""
    given = given_spans()
    with sending(tmp_path, programs / "given.yaml", jaeger, protocol=protocol, encoder=encoder, **WHERE) as daemon:
        for span in given:
            give(span)
        assert daemon.end() == 0

    check_given(given, jaeger.trace(f"{given[0].trace_id:032x}"))
    assert {"kernel", "wörker", "ebpftrace-agent"} == jaeger.services()


def test_jaeger_shows_the_start(tmp_path, programs, jaeger):
    """The agent's start and stop are two whole traces in Jaeger: one root each, every other span below it."""
    with sending(tmp_path, programs / "numbered.yaml", jaeger) as daemon:
        assert daemon.end() == 0
    traces: dict[str, list] = {}
    for span in jaeger.find("ebpftrace-agent"):
        traces.setdefault(span["trace"], []).append(span)

    roots = {}
    for spans in traces.values():
        ids = {span["id"] for span in spans}
        [root] = [span for span in spans if not span["parent"]]
        assert {span["parent"] for span in spans if span is not root} <= ids
        roots[root["name"]] = {span["name"] for span in spans}
    assert {"agent.start", "agent.stop"} == set(roots)
    assert {"load numbered", "attach tp_btf/sys_enter", "give up privileges"} < roots["agent.start"]


# --- an application


def working(endpoint):
    """Sleep and run a program under a traced span, exported by the SDK's own exporter; return what was exported."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from ebpftrace.spans import json_encoder

    app = App()
    app.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    with app.span("request"), app.traced("work", "sched", "exec"):
        time.sleep(0.02)
        subprocess.run(["/bin/true"], check=True)
    app.session.flush()
    app.provider.force_flush()
    finished = app.exporter.get_finished_spans()
    app.provider.shutdown()
    return json.loads(json_encoder.encode(finished))


def test_jaeger_shows_an_application(jaeger):
    """An application's trace is whole in Jaeger: its spans and the kernel's, each below the span that suffered it."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the SDK's HTTP exporter is not installed")
    endpoint = jaeger.env()["OTEL_EXPORTER_OTLP_ENDPOINT"]
    exported = parsed(run(working, endpoint, env={"PYTHONPATH": str(Path(backends.__file__).parent)}).value)
    [trace_id] = {span["trace"] for span in exported}
    machine.until(lambda: len(jaeger.trace(trace_id)) >= len(exported))
    shown = by_id(jaeger.trace(trace_id))

    warned = {span["id"] for span in shown if span["attributes"].pop("@jaeger@warnings", None)}
    moments = {span["id"] for span in exported if span["end"] == span["start"]}
    longer = [{**span, "end": span["end"] + (span["id"] in moments)} for span in exported]  # by a nanosecond
    assert in_any_order(by_id(longer)) == in_any_order(shown)
    assert moments == warned
    names = {span["id"]: span["name"] for span in shown}
    below = {(names.get(span["parent"]), span["name"]) for span in shown}
    assert {(None, "request"), ("request", "work"), ("work", "sleep"), ("work", "exec true")} <= below


# --- a backend that goes away


def call(seconds, numbers, rate=500):
    """Make numbered calls for some time; `numbers` grows with them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.getpgid(FIRST + len(numbers))
        except ProcessLookupError:
            numbers.append(len(numbers))
        time.sleep(1 / rate)


def arrived(collector):
    """How often each number arrived."""
    found = [span for span in collector.spans() if span["name"] == "numbered"]
    mine = [span for span in found if span["attributes"]["process.pid"] == ("int_value", os.getpid())]
    return Counter(span["attributes"]["test.number"][1] for span in mine)


def queued(daemon):
    """Spans that wait in the agent."""
    return daemon.metrics()["ebpftrace_export_queue_spans"]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_collector_down_and_back(tmp_path, programs, otelcol, protocol):
    """A Collector that is down for ten seconds costs no span and doubles none."""
    called: list[int] = []
    with sending(tmp_path, programs / "numbered.yaml", otelcol, protocol=protocol) as daemon:
        call(0.5, called)
        otelcol.stop()
        call(10, called, rate=200)
        waiting = queued(daemon)
        otelcol.start()
        call(0.5, called)
        assert machine.until(lambda: queued(daemon) == 0, timeout_s=20)
        assert daemon.end() == 0
    otelcol.stop()
    totals = daemon.totals()

    assert waiting > 1000
    assert Counter(called) == arrived(otelcol)
    assert (totals["lost_in_kernel"], totals["undecoded"], totals["failed"], totals["dropped"]) == (0, 0, 0, 0)
    assert totals["exported"] == len(otelcol.spans())


def test_collector_that_hangs(tmp_path, programs, otelcol):
    """A Collector that answers nothing for some seconds costs no span; some it gets again, for it said nothing."""
    called: list[int] = []
    with sending(tmp_path, programs / "numbered.yaml", otelcol, OTEL_EXPORTER_OTLP_TIMEOUT="1000") as daemon:
        call(0.5, called)
        otelcol.freeze()
        call(4, called)
        retries = daemon.metrics()["ebpftrace_export_retries_total"]
        otelcol.thaw()
        call(0.5, called)
        assert machine.until(lambda: queued(daemon) == 0, timeout_s=20)
        assert daemon.end() == 0
    otelcol.stop()
    found, totals = arrived(otelcol), daemon.totals()

    assert retries > 0
    assert set(called) == set(found)
    assert max(found.values()) <= 2 + retries
    assert (totals["failed"], totals["dropped"]) == (0, 0)
