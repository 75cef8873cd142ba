# SPDX-License-Identifier: Apache-2.0
"""The native exporter over gRPC, against a real server with gRPC's default limits."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import grpc
import pytest
import trustme
from otlp_servers import GrpcCollector, Reply, chunk, running, wait_until
from sinks import RESOURCE, open_sink

from ebpftrace.errors import ConfigError, UnsupportedError
from ebpftrace.spans.otlp import OtlpSink, read_settings

GRPC = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}


@pytest.fixture
def collector():
    with running(GrpcCollector()) as server:
        yield server


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def credentials(authority, *, ask_clients=False):
    """A server's certificate for localhost."""
    issued = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    trusted = authority.cert_pem.bytes() if ask_clients else None
    return grpc.ssl_server_credentials([(issued.private_key_pem.bytes(), chain)], trusted, ask_clients)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_arrival(collector, compression):
    """Spans arrive whole, by service, with the headers as metadata; compressed when asked for."""
    variables = {"OTEL_EXPORTER_OTLP_HEADERS": "Authorization=x", "OTEL_EXPORTER_OTLP_COMPRESSION": compression}
    with open_sink(collector, **GRPC, **variables) as sink:
        sink.put([chunk([1, 2], padding=500), chunk([3], service="db")])
        assert sink.flush(10)
        stats = sink.stats

    _, metadata = collector.attempts[0]
    resources = [group.resource.attributes for group in collector.resource_spans]
    assert [1, 2, 3] == collector.numbers
    assert [RESOURCE["service.name"], "db"] == [
        next(pair.value.string_value for pair in attributes if pair.key == "service.name") for attributes in resources
    ]
    assert "x" == metadata["authorization"]
    assert metadata["user-agent"].startswith("OTel-OTLP-Exporter-Python/")
    assert (3, 3, 1) == (stats.emitted, stats.exported, stats.requests)


def test_large_amounts_are_split(collector):
    """Requests stay below the 4 MiB that servers take by default."""
    with open_sink(collector, **GRPC) as sink:
        sink.put([chunk(range(n, n + 900), padding=1000) for n in range(1, 9001, 900)])
        assert sink.flush(20)

        assert (9000, 0) == (sink.stats.exported, sink.stats.failed)
    assert list(range(1, 9001)) == collector.numbers
    assert 3 <= len(collector.attempts) <= 5


@pytest.mark.parametrize(
    "status", ["CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"]
)
def test_repeated(collector, status):
    """What the specification calls retryable is sent again until it is accepted."""
    collector.script += [Reply(status=status, text="not now")] * 2
    with open_sink(collector, **GRPC) as sink:
        sink.put([chunk([1])])
        assert wait_until(lambda: sink.stats.exported == 1)

        assert (3, 2, f"{status}: not now") == (sink.stats.requests, sink.stats.retries, sink.stats.last_error)


@pytest.mark.parametrize("status", ["INVALID_ARGUMENT", "UNAUTHENTICATED", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"])
def test_refused(collector, status):
    """Any other code is counted as failed at once, as is an exhausted server that says nothing about when."""
    collector.script.append(Reply(status=status, text="never"))
    with open_sink(collector, **GRPC) as sink:
        sink.put([chunk([1])])
        assert not sink.flush(10)
        sink.put([chunk([2])])
        assert sink.flush(10)

        assert ({"refused": 1}, 1, 0) == (sink.stats.failures, sink.stats.exported, sink.stats.retries)
        assert f"{status}: never" == sink.stats.last_error


@pytest.mark.parametrize("status", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
def test_retry_info(collector, status):
    """The delay in a RetryInfo is waited for, also by a flush."""
    collector.script.append(Reply(status=status, retry_delay_s=0.7))
    with open_sink(collector, **GRPC) as sink:
        sink.put([chunk([1])])
        assert sink.flush(10)

    (first, _), (second, _) = collector.attempts
    assert 0.7 <= second - first < 3


def test_partial_success(collector, caplog):
    """Rejected spans are counted and not sent again; a remark about none is passed on."""
    collector.script += [Reply(rejected=2, text="too old"), Reply(text="upgrade soon")]
    with caplog.at_level(logging.INFO, "ebpftrace.otlp"), open_sink(collector, **GRPC) as sink:
        sink.put([chunk([1, 2, 3])])
        sink.flush(10)
        sink.put([chunk([4])])
        assert sink.flush(10)

        assert ({"rejected": 2}, 2, 2) == (sink.stats.failures, sink.stats.exported, sink.stats.requests)
    assert ["too old"] == [record.args[2] for record in caplog.records]
    assert "upgrade soon" == sink.stats.last_error


def test_no_answer(collector):
    """A call that is not answered within the timeout is repeated."""
    collector.script.append(Reply(delay_s=1.0))
    with open_sink(collector, OTEL_EXPORTER_OTLP_TIMEOUT="300", **GRPC) as sink:
        sink.put([chunk([1])])
        assert wait_until(lambda: sink.stats.exported == 1)

        assert "DEADLINE_EXCEEDED" in sink.stats.last_error


def test_an_outage_loses_nothing(collector):
    """What comes while nothing listens waits, and arrives soon after the server is back."""
    with open_sink(collector, **GRPC) as sink:
        sink.put([chunk(range(1, 101))])
        assert sink.flush(10)
        collector.stop()
        for number in range(101, 1101, 100):
            sink.put([chunk(range(number, number + 100))])
            time.sleep(0.1)
        waiting = sink.stats
        collector.start()
        assert wait_until(lambda: sink.stats.queued_spans == 0, 5)
        stats = sink.stats

    assert (1000, 100) == (waiting.queued_spans, waiting.exported)
    assert list(range(1, 1101)) == collector.numbers
    assert (1100, 0, 0) == (stats.exported, stats.failed, stats.dropped)


def test_closing_with_a_dead_server(collector):
    """Closing ends the call on its way at the deadline and counts its spans as dropped."""
    collector.hold.clear()
    with open_sink(collector, **GRPC) as sink:
        sink.put([chunk(range(1, 11))])
        assert wait_until(lambda: collector.attempts)
        started = time.monotonic()
        sink.close(0.3)

        assert time.monotonic() - started < 1.5
        assert ({"closed": 10}, 0, 0) == (sink.stats.drops, sink.stats.exported, sink.stats.queued_spans)
        assert not sink._thread.is_alive()


def test_tls(authority):
    """A server's certificate is checked against the certificate file, and https means TLS."""
    with (
        running(GrpcCollector(credentials(authority))) as collector,
        authority.cert_pem.tempfile() as trusted,
        open_sink(collector, OTEL_EXPORTER_OTLP_CERTIFICATE=trusted, **GRPC) as sink,
    ):
        sink.put([chunk([1])])
        assert sink.flush(10)

    assert [1] == collector.numbers


def test_tls_of_a_stranger(authority):
    """A certificate that nobody vouched for is no connection, and the spans wait."""
    with running(GrpcCollector(credentials(authority))) as collector, open_sink(collector, **GRPC) as sink:
        sink.put([chunk([1])])
        assert wait_until(lambda: sink.stats.last_error.startswith("UNAVAILABLE"))
        assert 1 == sink.stats.queued_spans
        sink.close(0)

    assert [] == collector.attempts


def test_client_certificate(authority):
    """A server that wants to know its clients is shown the client's certificate."""
    client = authority.issue_cert("agent@example.org")
    with (
        running(GrpcCollector(credentials(authority, ask_clients=True))) as collector,
        authority.cert_pem.tempfile() as trusted,
        client.private_key_pem.tempfile() as key,
        client.cert_chain_pems[0].tempfile() as chain,
    ):
        variables = {"CERTIFICATE": trusted, "CLIENT_KEY": key, "CLIENT_CERTIFICATE": chain}
        environ = {f"OTEL_EXPORTER_OTLP_{name}": path for name, path in variables.items()}
        with open_sink(collector, **GRPC, **environ) as sink:
            sink.put([chunk([1])])
            assert sink.flush(10)

    assert [1] == collector.numbers


def test_silence(authority):
    """GRPC's own lines about connections that fail do not get into the process's stderr."""
    code = """
import sys, time
from ebpftrace.spans.otlp import OtlpSink, read_settings
from ebpftrace.spans.pipeline import Chunk
sink = OtlpSink(read_settings({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": sys.argv[1]}), {})
sink.put([Chunk("", "sched", b"", 1)])
sink.flush(1)
print(sink.stats.last_error.split(":")[0])
sink.close(0)
"""
    with running(GrpcCollector(credentials(authority))) as collector:
        command = [sys.executable, "-c", "import logging; logging.disable()\n" + code, collector.url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert ("UNAVAILABLE\n", "") == (done.stdout, done.stderr)


@pytest.mark.parametrize(("path", "reason"), [("/nowhere.pem", "No such file"), (__file__, "it is not PEM")])
def test_bad_certificates(path, reason):
    """A certificate file that cannot be used is an error before anything is sent."""
    environ = GRPC | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://localhost:1",
        "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": path,
    }

    with pytest.raises(ConfigError, match=f"cannot use {path}: {reason}"):
        OtlpSink(read_settings(environ), {})


def test_without_grpcio(monkeypatch):
    """Without grpcio the error says what to install, and what to set instead."""
    monkeypatch.setitem(sys.modules, "grpc", None)

    with pytest.raises(UnsupportedError, match=r"pip install 'ebpftrace\[grpc\]', or set OTEL_EXPORTER_OTLP_PROTOCOL"):
        OtlpSink(read_settings(GRPC), {})
