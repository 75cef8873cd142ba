# SPDX-License-Identifier: Apache-2.0
"""Settings of the native exporter: every variable, its rules and its mistakes."""

from __future__ import annotations

import math
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.errors import ConfigError
from ebpftrace.spans.otlp.headers import parse_headers
from ebpftrace.spans.otlp.settings import OtlpSettings, read_settings

GRPC = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}


def problem(environ):
    """The text of the error that these variables make."""
    with pytest.raises(ConfigError) as raised:
        read_settings(environ)
    return str(raised.value)


def test_nothing_set():
    """Without variables it is HTTP to this machine, uncompressed, 10 s an attempt, a request a second."""
    settings = read_settings({})

    assert OtlpSettings() == settings
    assert ("http/protobuf", "http://localhost:4318/v1/traces") == (settings.protocol, settings.endpoint)
    assert (10.0, 1.0, 64 << 20, None) == (
        settings.timeout_s,
        settings.delay_s,
        settings.max_queue_bytes,
        settings.max_queue_spans,
    )


@pytest.mark.parametrize(
    ("variable", "text", "url", "secure"),
    [
        ("ENDPOINT", "http://collector:4318", "http://collector:4318/v1/traces", False),
        ("ENDPOINT", "https://collector/base/", "https://collector/base/v1/traces", True),
        ("ENDPOINT", "http://[::1]:4318/?tenant=a", "http://[::1]:4318/v1/traces?tenant=a", False),
        ("TRACES_ENDPOINT", "http://collector:4318", "http://collector:4318/", False),
        ("TRACES_ENDPOINT", "https://collector/in/", "https://collector/in/", True),
        ("TRACES_ENDPOINT", "HTTP://collector/own?key=1#part", "http://collector/own?key=1", False),
    ],
)
def test_http_endpoints(variable, text, url, secure):
    """The general endpoint is a base that gets /v1/traces; the one for traces is used as it is."""
    settings = read_settings({f"OTEL_EXPORTER_OTLP_{variable}": text})

    assert (url, secure) == (settings.endpoint, settings.secure)


@pytest.mark.parametrize(
    ("environ", "target", "secure"),
    [
        ({}, "localhost:4317", False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317/"}, "collector:4317", False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector"}, "collector:443", True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[::1]:9"}, "[::1]:9", False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "collector:4317", True),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_EXPORTER_OTLP_INSECURE": "TRUE"},
            "collector:4317",
            False,
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:1", "OTEL_EXPORTER_OTLP_INSECURE": "true"},
            "collector:1",
            True,
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "unix:///run/otel.sock", "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "true"},
            "unix:///run/otel.sock",
            False,
        ),
    ],
)
def test_grpc_endpoints(environ, target, secure):
    """For gRPC the scheme decides about TLS, and INSECURE where there is none."""
    settings = read_settings(GRPC | environ)

    assert ("grpc", target, secure) == (settings.protocol, settings.endpoint, settings.secure)


def test_all_values():
    """Each variable becomes its setting, in its unit; times are milliseconds and no timeout is no limit."""
    settings = read_settings(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4318",
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20abc, X-Tenant = a=b ,",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "/tls/ca.pem",
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": "/tls/key.pem",
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "/tls/me.pem",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_BSP_MAX_QUEUE_SIZE": "10000",
        }
    )

    assert (("authorization", "Bearer abc"), ("x-tenant", "a=b")) == settings.headers
    assert ("/tls/ca.pem", "/tls/key.pem", "/tls/me.pem") == (
        settings.certificate,
        settings.client_key,
        settings.client_certificate,
    )
    assert ("gzip", 2.5, 0.2, 10_000) == (
        settings.compression,
        settings.timeout_s,
        settings.delay_s,
        settings.max_queue_spans,
    )
    assert math.inf == read_settings({"OTEL_EXPORTER_OTLP_TIMEOUT": "0"}).timeout_s


def test_precedence():
    """The variable for traces wins over the general one, and an empty one is as good as unset."""
    settings = read_settings(
        {
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a=1",
            "OTEL_EXPORTER_OTLP_HEADERS": "b=2",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": " ",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "3000",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "",
        }
    )

    assert ((("a", "1"),), 3.0, "grpc", "none") == (
        settings.headers,
        settings.timeout_s,
        settings.protocol,
        settings.compression,
    )


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"ENDPOINT": "localhost:4318"}, "does not begin with http:// or https://; write http://host:4318"),
        ({"ENDPOINT": "http//localhost"}, "does not begin with http:// or https://"),
        ({"ENDPOINT": "http://"}, "has no host"),
        ({"ENDPOINT": "http://host:99999"}, "is no URL (Port out of range 0-65535)"),
        ({"ENDPOINT": "http://host:0"}, "has no port above 0"),
        ({"ENDPOINT": "http://ho st"}, "has a space"),
        ({"ENDPOINT": "http://[::1"}, "is no URL"),
        ({"TRACES_ENDPOINT": "ftp://host"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'ftp://host' does not begin"),
        ({"PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL='http/json': JSON is not offered; write http/proto"),
        ({"PROTOCOL": "HTTP"}, "OTEL_EXPORTER_OTLP_PROTOCOL='HTTP': write http/protobuf or grpc"),
        ({"COMPRESSION": "zstd"}, "OTEL_EXPORTER_OTLP_COMPRESSION='zstd': write gzip or none"),
        ({"TIMEOUT": "10s"}, "OTEL_EXPORTER_OTLP_TIMEOUT='10s': write a whole number of milliseconds"),
        ({"TRACES_TIMEOUT": "-1"}, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT='-1': write a whole number of milliseconds"),
        ({"INSECURE": "yes"}, "OTEL_EXPORTER_OTLP_INSECURE='yes': write true or false"),
        ({"HEADERS": "novalue"}, "OTEL_EXPORTER_OTLP_HEADERS: entry 1 has no '='"),
        ({"HEADERS": "a=1,b c=2"}, "entry 2 has a name that no header can have"),
        ({"HEADERS": "a=x%0d%0ab:c"}, "the value of a has a control character"),
        ({"HEADERS": "a=%ff"}, "the value of a is not UTF-8"),
        ({"HEADERS": "Content-Type=text/plain"}, "content-type is the exporter's to set"),
        ({"ENDPOINT": "https://host", "CLIENT_KEY": "/k.pem"}, "only one is set; give both"),
        ({"PROTOCOL": "grpc", "ENDPOINT": "http://host:1/v1/traces"}, "gRPC has no paths, and '/v1/traces' is one"),
        ({"PROTOCOL": "grpc", "ENDPOINT": "collector"}, "'collector' is no endpoint; write http://host:4317"),
        ({"PROTOCOL": "grpc", "ENDPOINT": "collector:0"}, "is no endpoint"),
        ({"PROTOCOL": "grpc", "ENDPOINT": "dns:///"}, "names nothing behind the scheme"),
        ({"PROTOCOL": "grpc", "HEADERS": "a=%C3%A9"}, "gRPC carries printable ASCII only; a has more"),
    ],
)
def test_mistakes(environ, expected):
    """A wrong value is an error that names the variable and says what to write."""
    text = problem({f"OTEL_EXPORTER_OTLP_{name}": value for name, value in environ.items()})

    assert expected in text
    assert 1 == len(text.splitlines())


@pytest.mark.parametrize(("name", "value"), [("SCHEDULE_DELAY", "soon"), ("MAX_QUEUE_SIZE", "0")])
def test_batch_mistakes(name, value):
    """So are wrong values of the variables for batches."""
    assert f"OTEL_BSP_{name}={value!r}: write " in problem({f"OTEL_BSP_{name}": value})


def test_all_mistakes_at_once():
    """Several mistakes are one error with a line each."""
    text = problem(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "nowhere",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "best",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "x",
        }
    )

    assert 3 == len(text.splitlines())


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_secrets(protocol):
    """Neither an error nor the settings' text shows a header's value or a password or query in a URL."""
    wrong = problem(
        {
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:hunter2@host:4318",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hunter2%00",
        }
    )
    worse = problem({"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_ENDPOINT": "htp://me:hunter2@host"})
    key = problem({"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_ENDPOINT": "htp://host/v1?key=hunter2"})
    settings = read_settings({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=hunter2"})

    assert 2 == len(wrong.splitlines())
    assert "hunter2" not in wrong + worse + key + repr(settings)


names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.!#$%&'*+^`|~", min_size=1, max_size=20)
values = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=30).map(str.strip)


@given(st.dictionaries(names, values))
def test_headers_round_trip(headers):
    """Whatever text is percent-encoded into the variable comes out again."""
    ours = {"content-type", "content-encoding", "content-length", "transfer-encoding"}
    text = ",".join(f" {name.upper()} = {quote(value)} " for name, value in headers.items() if name not in ours)

    assert tuple((name, value) for name, value in headers.items() if name not in ours) == parse_headers(text)


@given(st.text(max_size=60))
def test_headers_from_anything(text):
    """Any text is headers that HTTP can carry, or a ValueError."""
    try:
        headers = parse_headers(text)
    except ValueError:
        return

    assert all("=" not in name and "," not in name and name == name.lower() for name, _ in headers)
    assert not any(char in value for _, value in headers for char in "\r\n\0")
