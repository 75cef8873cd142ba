# SPDX-License-Identifier: Apache-2.0
"""The native exporter over HTTP, against a real server."""

from __future__ import annotations

import base64
import logging
import ssl
import time
from urllib.parse import quote

import pytest
import trustme
from otlp_servers import HttpCollector, Reply, chunk, running, wait_until
from sinks import FAST, RESOURCE, open_sink

from ebpftrace._version import version
from ebpftrace.errors import ConfigError
from ebpftrace.spans.otlp import OtlpSink, read_settings


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def collector():
    with running(HttpCollector()) as server:
        yield server


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls(authority):
    """A server's context with a certificate for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def test_arrival(collector):
    """Spans arrive whole, grouped by service under one scope, with the headers of the variables and ours."""
    with open_sink(collector, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20x,x-name=%C3%A9") as sink:
        sink.put([chunk([1, 2]), chunk([3], service="db"), chunk([4], program="exec")])
        assert sink.flush(10)
        stats = sink.stats

    resources = [group.resource.attributes for group in collector.resource_spans]
    _, headers = collector.attempts[0]
    assert [1, 2, 3, 4] == collector.numbers
    assert [RESOURCE, {"service.name": "db", "host.name": "here"}] == [
        {pair.key: pair.value.string_value for pair in attributes} for attributes in resources
    ]
    assert {("ebpftrace.kernel", version)} == {
        (scope.scope.name, scope.scope.version) for group in collector.resource_spans for scope in group.scope_spans
    }
    assert ["/v1/traces"] == collector.paths
    assert ("Bearer x", "application/x-protobuf") == (headers["authorization"], headers["content-type"])
    assert "é" == headers["x-name"].encode("latin-1").decode()
    assert headers["user-agent"].startswith(f"OTel-OTLP-Exporter-Python/{version}")
    assert (4, 4, 0, 0, 0, 0, 1) == (
        stats.emitted,
        stats.exported,
        stats.failed,
        stats.dropped,
        stats.queued_spans,
        stats.queued_bytes,
        stats.requests,
    )


def test_gzip(collector):
    """With gzip asked for, requests are compressed and say so."""
    with open_sink(collector, OTEL_EXPORTER_OTLP_COMPRESSION="gzip") as sink:
        sink.put([chunk(range(1, 500), padding=100)])
        assert sink.flush(10)

    _, headers = collector.attempts[0]
    assert 499 == len(collector.spans)
    assert "gzip" == headers["content-encoding"]
    assert int(headers["content-length"]) < 20_000


def test_large_amounts_are_split(collector):
    """More than a request holds becomes several requests below the limit, over one connection."""
    with open_sink(collector) as sink:
        sink.put([chunk(range(n, n + 900), padding=1000) for n in range(1, 9001, 900)])
        assert sink.flush(20)
        assert 9000 == sink.stats.exported

    lengths = [int(headers["content-length"]) for _, headers in collector.attempts]
    assert list(range(1, 9001)) == collector.numbers
    assert 3 <= len(lengths) <= 5
    assert max(lengths) < 3 << 20
    assert 1 == collector.connections


def test_delay(collector):
    """Without a flush a span arrives when the schedule's delay is over."""
    with open_sink(collector, OTEL_BSP_SCHEDULE_DELAY="100") as sink:
        sink.put([chunk([1])])
        assert wait_until(lambda: collector.numbers == [1], 5)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_repeated(collector, status):
    """What the specification calls retryable is sent again until it is accepted, after waits that grow."""
    collector.script += [Reply(status=status)] * 3
    with open_sink(collector) as sink:
        sink.put([chunk([1, 2])])
        assert wait_until(lambda: sink.stats.exported == 2)
        stats = sink.stats

    assert [1, 2] == collector.numbers
    assert (4, 3, 0) == (stats.requests, stats.retries, stats.failed)
    assert stats.last_error.startswith(str(status))
    assert 0 <= time.time() - stats.last_error_at < 10


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 500])
def test_refused(collector, status):
    """Any other error is counted as failed at once, with what the server said, and the next spans are sent."""
    collector.script.append(Reply(status=status, text="no such thing"))
    with open_sink(collector) as sink:
        sink.put([chunk([1, 2])])
        assert not sink.flush(10)
        sink.put([chunk([3])])
        assert sink.flush(10)
        stats = sink.stats

    assert [3] == collector.numbers
    assert (2, {"refused": 2}, 1, 0) == (stats.failed, stats.failures, stats.exported, stats.retries)
    assert f"{status} " in stats.last_error
    assert "no such thing" in stats.last_error


def test_redirect(collector):
    """A redirect is not followed but told: it would take the credentials elsewhere."""
    collector.script.append(Reply(status=307, headers={"Location": "http://elsewhere/"}, body=b""))
    with open_sink(collector) as sink:
        sink.put([chunk([1])])
        sink.flush(10)

        assert "http://elsewhere/" in sink.stats.last_error
        assert 1 == sink.stats.failed


def test_key_in_a_redirect(collector):
    """Servers repeat the query in a redirect, and some put a key there: it is not shown."""
    collector.script.append(Reply(status=308, headers={"Location": "https://elsewhere/v1?key=secret"}, body=b""))
    with open_sink(collector) as sink:
        sink.put([chunk([1])])
        sink.flush(10)

        assert sink.stats.last_error.endswith(": https://elsewhere/v1")


def test_remark_of_any_length(collector):
    """What a server remarks is one line of the log, however long it is."""
    collector.script.append(Reply(text="first\nsecond\r" + "x" * 50_000))
    with open_sink(collector) as sink:
        sink.put([chunk([1])])
        sink.flush(10)

        assert sink.stats.last_error.startswith("first second x")
        assert len(sink.stats.last_error) <= 300


def test_retry_after(collector):
    """The server's Retry-After is waited for, also by a flush."""
    collector.script.append(Reply(status=503, headers={"Retry-After": "1"}))
    with open_sink(collector) as sink:
        sink.put([chunk([1])])
        assert sink.flush(10)

    (first, _), (second, _) = collector.attempts
    assert 1.0 <= second - first < 3


def test_cut_connections(collector):
    """A server that disconnects without an answer is asked again."""
    collector.script += [Reply(cut=True)] * 2
    with open_sink(collector) as sink:
        sink.put([chunk([1])])
        assert wait_until(lambda: sink.stats.exported == 1)
        assert 2 == sink.stats.retries


def test_no_answer(collector):
    """A server that does not answer within the timeout is asked again; what arrives twice is the price."""
    collector.script.append(Reply(delay_s=1.0))
    with open_sink(collector, OTEL_EXPORTER_OTLP_TIMEOUT="200") as sink:
        sink.put([chunk([1])])
        assert wait_until(lambda: sink.stats.exported == 1)
        assert "no answer within 0.2 s" == sink.stats.last_error


def test_answer_that_is_no_message(collector):
    """A 200 with a body that cannot be read is a success all the same."""
    collector.script += [Reply(body=b"\xff\xff"), Reply(body=b"{}", headers={"Content-Type": "application/json"})]
    with open_sink(collector) as sink:
        for number in (1, 2):
            sink.put([chunk([number])])
            assert sink.flush(10)

        assert (2, 0, "") == (sink.stats.exported, sink.stats.failed, sink.stats.last_error)


def test_partial_success(collector, caplog):
    """Rejected spans are counted, not sent again, and the server's reason is logged once."""
    collector.then = Reply(rejected=2, text="too old")
    with caplog.at_level(logging.INFO, "ebpftrace.otlp"), open_sink(collector) as sink:
        for number in (1, 11, 21):
            sink.put([chunk(range(number, number + 5))])
            sink.flush(10)
        stats = sink.stats

    assert (9, 6, {"rejected": 6}, 3) == (stats.exported, stats.failed, stats.failures, stats.requests)
    assert 1 == sum("too old" in record.message for record in caplog.records)
    assert 1 == len(caplog.records)


def test_an_outage_loses_nothing(collector, caplog):
    """What comes while nothing listens waits, and all of it arrives once; two log lines tell about it."""
    with caplog.at_level(logging.INFO, "ebpftrace.otlp"), open_sink(collector) as sink:
        sink.put([chunk(range(1, 101))])
        assert sink.flush(10)
        collector.stop()
        for number in range(101, 2001, 100):
            sink.put([chunk(range(number, number + 100), padding=100)])
            time.sleep(0.1)
        waiting = sink.stats
        collector.start()
        assert wait_until(lambda: sink.stats.queued_spans == 0)
        stats = sink.stats

    assert (1900, 100, True) == (waiting.queued_spans, waiting.exported, waiting.retries > 1)
    assert list(range(1, 2001)) == collector.numbers
    assert (2000, 2000, 0, 0) == (stats.emitted, stats.exported, stats.failed, stats.dropped)
    first, second = (record.getMessage() for record in caplog.records)
    assert f"{sink.settings.endpoint} takes no spans: Connection refused" in first
    assert "takes spans again, after" in second
    assert "; 0 spans were lost" in second


def test_an_outage_longer_than_the_queue(collector):
    """When the queue is full the newest spans are dropped and counted, and the others arrive."""
    collector.stop()
    with open_sink(collector, queue_bytes=100_000) as sink:
        for number in range(1, 3001, 100):
            sink.put([chunk(range(number, number + 100), padding=50)])
        full = sink.stats
        collector.start()
        assert wait_until(lambda: sink.stats.queued_spans == 0)
        stats = sink.stats

    assert 90_000 < full.queued_bytes <= 100_000
    assert {"queue_full": full.dropped} == stats.drops
    assert 3000 == stats.exported + stats.dropped
    assert list(range(1, stats.exported + 1)) == collector.numbers


def test_a_queue_in_spans(collector):
    """OTEL_BSP_MAX_QUEUE_SIZE bounds the queue in spans."""
    collector.hold.clear()
    with open_sink(collector, OTEL_BSP_MAX_QUEUE_SIZE="250") as sink:
        sink.put([chunk(range(number, number + 100)) for number in (1, 101, 201)])
        stats = sink.stats
        collector.hold.set()
        assert sink.flush(10)

    assert (200, {"queue_full": 100}) == (stats.queued_spans, stats.drops)


def test_giving_up(collector):
    """A request that a server there goes on not taking is dropped after a time, and those behind it get through."""
    collector.then = Reply(status=503)
    with open_sink(collector, give_up_s=0.5) as sink:
        sink.put([chunk([1])])
        assert wait_until(lambda: sink.stats.dropped == 1)
        collector.then = Reply()
        sink.put([chunk([2])])
        assert sink.flush(10)

        assert {"expired": 1} == sink.stats.drops
    assert [2] == collector.numbers


def test_closing_with_a_slow_server(collector):
    """Closing waits for a server that is slow and sends everything that is queued."""
    collector.then = Reply(delay_s=0.2)
    with open_sink(collector) as sink:
        sink.put([chunk(range(n, n + 900), padding=1000) for n in range(1, 7201, 900)])
        sink.close(10)
        stats = sink.stats

    assert list(range(1, 7201)) == collector.numbers
    assert (7200, 0) == (stats.exported, stats.dropped)


def test_closing_with_a_dead_server(collector, caplog):
    """Closing is over at its deadline, what was not sent is counted as dropped, and one line says so."""
    collector.hold.clear()
    with open_sink(collector) as sink:
        sink.put([chunk(range(1, 11))])
        assert wait_until(lambda: collector.attempts)
        sink.put([chunk(range(11, 16))])
        started = time.monotonic()
        sink.close(0.3)
        took = time.monotonic() - started
        sink.put([chunk([99])])
        stats = sink.stats

    assert 0.25 < took < 1.5
    assert {"closed": 16} == stats.drops
    assert (16, 0, 0, 0) == (stats.emitted, stats.exported, stats.queued_spans, stats.queued_bytes)
    assert 1 == sum("15 spans were not sent" in record.getMessage() for record in caplog.records)


def test_closing_during_an_outage(collector):
    """Closing does not wait out a backoff: a collector that is back in time gets everything."""
    collector.stop()
    with open_sink(collector, retry_first_s=30, retry_max_s=30) as sink:
        sink.put([chunk([1, 2, 3])])
        assert wait_until(lambda: sink.stats.requests == 1)
        collector.start()
        sink.close(5)

    assert [1, 2, 3] == collector.numbers


def test_closing_with_a_server_that_wants_to_be_left_alone(collector):
    """A Retry-After beyond the deadline ends the closing at once."""
    collector.then = Reply(status=503, headers={"Retry-After": "60"})
    with open_sink(collector) as sink:
        sink.put([chunk([1])])
        assert wait_until(lambda: sink.stats.requests == 1)
        started = time.monotonic()
        sink.close(5)

        assert time.monotonic() - started < 1
        assert ({"closed": 1}, 1) == (sink.stats.drops, len(collector.attempts))


def test_tls(authority, tls):
    """The server's certificate is checked against the certificate file of the settings."""
    with (
        running(HttpCollector(tls)) as collector,
        authority.cert_pem.tempfile() as trusted,
        open_sink(collector, OTEL_EXPORTER_OTLP_CERTIFICATE=trusted) as sink,
    ):
        sink.put([chunk([1])])
        assert sink.flush(10)

    assert [1] == collector.numbers


def test_tls_of_a_stranger(tls):
    """A certificate that nobody vouched for is no connection; the spans wait and the reason is told."""
    with running(HttpCollector(tls)) as collector, open_sink(collector) as sink:
        sink.put([chunk([1])])
        assert wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in sink.stats.last_error)
        assert 1 == sink.stats.queued_spans
        sink.close(0)

    assert [] == collector.attempts


def test_client_certificate(authority, tls):
    """A server that wants to know its clients is shown the client's certificate."""
    tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(tls)
    client = authority.issue_cert("agent@example.org")
    with (
        running(HttpCollector(tls)) as collector,
        authority.cert_pem.tempfile() as trusted,
        client.private_key_pem.tempfile() as key,
        client.cert_chain_pems[0].tempfile() as chain,
    ):
        variables = {"CERTIFICATE": trusted, "CLIENT_KEY": key, "CLIENT_CERTIFICATE": chain}
        with open_sink(collector, **{f"OTEL_EXPORTER_OTLP_{name}": path for name, path in variables.items()}) as sink:
            sink.put([chunk([1])])
            assert sink.flush(10)

    assert [1] == collector.numbers


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CERTIFICATE": "/nowhere.pem"}, "_CERTIFICATE: cannot use /nowhere.pem: No such file or directory"),
        ({"CERTIFICATE": __file__}, "_CERTIFICATE: cannot use"),
        ({"CLIENT_KEY": __file__, "CLIENT_CERTIFICATE": __file__}, "_CLIENT_CERTIFICATE and CLIENT_KEY: cannot use"),
    ],
)
def test_bad_certificates(variables, expected):
    """A certificate file that cannot be used is an error before anything is sent."""
    environ = {f"OTEL_EXPORTER_OTLP_{name}": path for name, path in variables.items()}
    settings = read_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://localhost:1"} | environ)

    with pytest.raises(ConfigError, match=expected):
        OtlpSink(settings, {})


def test_proxy(collector, monkeypatch):
    """The proxy of the environment is asked for the endpoint, unless NO_PROXY has it."""
    monkeypatch.setenv("http_proxy", collector.url)
    with open_sink(collector, OTEL_EXPORTER_OTLP_ENDPOINT="http://collector.invalid:4318") as sink:
        sink.put([chunk([1])])
        assert sink.flush(10)
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setenv("http_proxy", "http://localhost:1")
    with open_sink(collector) as sink:
        sink.put([chunk([2])])
        assert sink.flush(10)

    assert [1, 2] == collector.numbers
    assert ["http://collector.invalid:4318/v1/traces", "/v1/traces"] == collector.paths


@pytest.mark.parametrize(("user", "password"), [("me", "p:@ä"), ("m%e", "")])
def test_proxy_password(collector, monkeypatch, user, password):
    """Name and password of the proxy are percent-encoded in its URL, and sent as they are."""
    host = collector.url.partition("//")[2]
    monkeypatch.setenv("http_proxy", f"http://{quote(user)}:{quote(password, safe='')}@{host}")
    with open_sink(collector, OTEL_EXPORTER_OTLP_ENDPOINT="http://collector.invalid:4318") as sink:
        sink.put([chunk([1])])
        assert sink.flush(10)

    [(_, headers)] = collector.attempts
    scheme, _, found = headers["proxy-authorization"].partition(" ")
    assert ("Basic", f"{user}:{password}") == (scheme, base64.b64decode(found).decode())


def test_wrong_proxy(monkeypatch):
    """A proxy of a kind that is not known here is an error at the start."""
    monkeypatch.setenv("http_proxy", "socks5://localhost:1")

    with pytest.raises(ConfigError, match="proxy is no http"):
        OtlpSink(read_settings({}), {})


def test_the_first_span_starts_the_thread(collector):
    """A sink that was given nothing has no thread and no connection."""
    sink = OtlpSink(read_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} | FAST), {})

    assert sink._thread is None
    assert sink.flush(0)
    sink.close()
    assert [] == collector.attempts
