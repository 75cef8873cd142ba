# SPDX-License-Identifier: Apache-2.0
"""The sink on a transport of the test: what no real server can be made to do, and how much is logged."""

from __future__ import annotations

import logging
import sys
import threading

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from spans_support import kernel_span

from ebpftrace.errors import UnsupportedError
from ebpftrace.spans.otlp import OtlpSettings, OtlpSink, health
from ebpftrace.spans.otlp.health import Health
from ebpftrace.spans.otlp.transport import Answer


class Transport:
    """Gives the answers of the test, the last one for ever."""

    def __init__(self, *answers):
        self.answers = list(answers) or [Answer("accepted")]
        self.bodies = []
        self.closed = False

    def prepare(self, request):
        """Nothing to do."""
        return request

    def send(self, body, timeout_s):
        """Take the next answer; an exception is raised."""
        self.bodies.append(ExportTraceServiceRequest.FromString(body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        """Note it."""
        self.closed = True


@pytest.fixture
def make():
    """Sinks, closed in the end."""
    sinks = []

    def make(transport, **settings):
        sinks.append(OtlpSink(OtlpSettings(delay_s=0, **settings), {"service.name": "kernel"}, transport=transport))
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.close(0)


def test_put_after_the_end(make):
    """A sink that is closed starts no thread for what comes too late."""
    sink = make(Transport())
    sink.close()
    sink.emit([kernel_span(1)])

    assert {"closed": 1} == sink.stats.drops
    assert sink._thread is None


def test_whole_spans(make):
    """Spans that are not encoded yet go the same way; one without ids is dropped and counted."""
    transport = Transport()
    sink = make(transport)
    sink.emit([kernel_span(1), kernel_span(2, service="db"), kernel_span(0), kernel_span(3, trace_id=0)])

    sink.flush(5)
    groups = [group for body in transport.bodies for group in body.resource_spans]
    found = {
        group.resource.attributes[0].value.string_value: [span.name for span in group.scope_spans[0].spans]
        for group in groups
    }
    assert {"kernel": ["span 1"], "db": ["span 2"]} == found
    assert (4, 2, {"invalid": 2}) == (sink.stats.emitted, sink.stats.exported, sink.stats.drops)


def test_a_fault_of_ours(make, caplog):
    """An exception nobody thought of costs one request, is logged once, and sending goes on."""
    transport = Transport(RuntimeError("bug"), RuntimeError("bug"), Answer("accepted"))
    sink = make(transport)
    for number in (1, 2):
        sink.emit([kernel_span(number)])
        sink.flush(5)
    sink.emit([kernel_span(3)])
    assert sink.flush(5)

    assert ({"error": 2}, 1, "RuntimeError: bug") == (sink.stats.failures, sink.stats.exported, sink.stats.last_error)
    assert 1 == len(caplog.records)


def test_many_services(make, monkeypatch):
    """Resources are kept for a bounded number of services, and each is right all the same."""
    monkeypatch.setattr("ebpftrace.spans.otlp.sink._MAX_RESOURCES", 3)
    transport = Transport()
    sink = make(transport)
    for number in range(1, 9):
        sink.emit([kernel_span(number, service=f"s{number % 5}")])
    assert sink.flush(5)

    groups = [group for body in transport.bodies for group in body.resource_spans]
    for group in groups:
        for span in group.scope_spans[0].spans:
            number = int(span.name.split()[1])
            assert f"s{number % 5}" == group.resource.attributes[0].value.string_value
    assert len(sink._resources) <= 3


def test_more_rejected_than_sent(make):
    """A server that rejects more spans than it got cannot upset the counters."""
    sink = make(Transport(Answer("accepted", "x", rejected=1 << 62)))
    sink.emit([kernel_span(1)])
    sink.flush(5)

    assert (1, 1, 0) == (sink.stats.emitted, sink.stats.failed, sink.stats.exported)


def test_no_thread(make, monkeypatch):
    """Where no thread can be started the spans stay queued, are told about, and are dropped at the end."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no threads")))
    sink = make(Transport())
    sink.emit([kernel_span(1)])
    queued = sink.stats
    sink.close(0)

    assert (1, "cannot start the sending thread: no threads") == (queued.queued_spans, queued.last_error)
    assert {"closed": 1} == sink.stats.drops


def test_a_key_in_the_query(make, caplog):
    """The log names the endpoint without its query, where some put a key."""
    sink = make(Transport(Answer("again", "no")), endpoint="https://host/v1/traces?key=hunter2")
    sink.emit([kernel_span(1)])
    sink.flush(0.05)
    sink.close(0)

    assert len(caplog.messages) == 2
    assert all("https://host/v1/traces" in message and "hunter2" not in message for message in caplog.messages)


def test_close_twice(make):
    """Closing is idempotent and closes the transport."""
    transport = Transport()
    sink = make(transport)
    sink.emit([kernel_span(1)])
    sink.close()
    sink.close()

    assert (True, 1) == (transport.closed, sink.stats.exported)


def test_a_flapping_server_is_no_log(caplog):
    """However often a server comes and goes, there is one pair of lines a minute; a lasting outage is always told."""
    with caplog.at_level(logging.INFO, "ebpftrace.otlp"):
        state = Health("there")
        for _ in range(50):
            state.down("refused", 0)
            state.refused("bad", 0)
            state.well(3)
        lines = [record.getMessage() for record in caplog.records]
        state._logged_at["down"] -= health.QUIET_S
        state.down("again", 3)

    assert 3 == len(lines)
    assert lines[2].endswith("and 2 failed requests; 3 spans were lost")
    assert "there takes no spans: again" in caplog.records[-1].getMessage()
    assert 4 == len(caplog.records)


def test_remarks_are_bounded(caplog):
    """Texts that differ each time are neither all logged nor all kept."""
    state = Health("there")
    for number in range(200):
        state._logged_at.clear()
        state.remark(f"bad span {number}", 1)

    assert 50 == len(caplog.records) == len(state._remarks)


def test_an_unreasonable_timeout(caplog, make):
    """Ten milliseconds are most likely meant to be seconds: one line says so."""
    make(Transport(), timeout_s=0.01)

    assert ["OTEL_EXPORTER_OTLP_TIMEOUT is in milliseconds: few answers come in 0.01 s"] == caplog.messages


def test_without_urllib3(monkeypatch):
    """Without urllib3 the error says what to install."""
    monkeypatch.setitem(sys.modules, "urllib3", None)
    monkeypatch.delitem(sys.modules, "ebpftrace.spans.otlp.http_client", raising=False)

    with pytest.raises(UnsupportedError, match=r"pip install 'ebpftrace\[agent\]'"):
        OtlpSink(OtlpSettings(), {})


def test_no_sdk():
    """The native way needs neither the SDK nor protobuf."""
    import subprocess

    code = (
        "import sys, ebpftrace.spans.otlp.http_client, ebpftrace.spans.otlp as o; o.OtlpSink(o.OtlpSettings(), {});"
        "print(sorted(name for name in sys.modules if name in ('opentelemetry.sdk', 'google.protobuf', 'grpc')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "[]" == done.stdout.strip()
