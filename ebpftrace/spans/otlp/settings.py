# SPDX-License-Identifier: Apache-2.0
"""Where spans are sent and how: the OTEL_EXPORTER_OTLP_* variables and the two OTEL_BSP_* ones that apply."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from ebpftrace.errors import ConfigError
from ebpftrace.spans.otlp.endpoint import grpc_target, http_url
from ebpftrace.spans.otlp.headers import parse_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Protocol = Literal["http/protobuf", "grpc"]

_PREFIX = "OTEL_EXPORTER_OTLP_"
_SIGNAL = "TRACES_"
_DEFAULT_ENDPOINTS = {"http/protobuf": "http://localhost:4318", "grpc": "http://localhost:4317"}


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """Checked settings of one `OtlpSink`; made from the environment by `read_settings`."""

    protocol: Protocol = "http/protobuf"
    endpoint: str = "http://localhost:4318/v1/traces"
    """The URL to post to; for gRPC the target, as grpcio writes targets."""

    secure: bool = False
    """TLS; for HTTP what the URL's scheme says."""

    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Sent with each request; names in lower case. Not in the repr: they carry credentials."""

    certificate: str = ""
    """PEM file of who is trusted to sign the server's certificate; "" = what the machine trusts."""

    client_key: str = ""
    client_certificate: str = ""
    """PEM files that identify this client; both or none."""

    compression: Literal["none", "gzip"] = "none"

    timeout_s: float = 10.0
    """For one attempt, from connecting to the end of the answer; inf = no limit."""

    delay_s: float = 1.0
    """The longest a span waits for others to share a request with."""

    max_queue_bytes: int = 64 << 20
    """What may wait, or be on its way; more is dropped and counted."""

    max_queue_spans: int | None = None
    max_request_bytes: int = 3 << 20
    """Before compression. gRPC servers refuse more than 4 MiB, unless told otherwise."""

    retry_first_s: float = 0.5
    retry_max_s: float = 5.0
    """Between attempts, doubling from the first to the last; randomly up to half of it less."""

    give_up_s: float = 300.0
    """A request that a reachable server went on not taking for so long is dropped, for those behind it."""


def read_settings(environ: Mapping[str, str]) -> OtlpSettings:
    """Read OTEL_EXPORTER_OTLP_[TRACES_]* and OTEL_BSP_{SCHEDULE_DELAY,MAX_QUEUE_SIZE} as the specification has them.

    A TRACES variable wins over the general one; an empty one is as good as unset. Times are milliseconds; the Python
    SDK reads OTEL_EXPORTER_OTLP_TIMEOUT in seconds.

    Raises:
        ConfigError: all that is wrong, a line each with variable, value and what to write instead.
    """
    return _Reader(environ).settings()


class _Reader:
    """Collects the problems, so that somebody who made three mistakes reads three lines at once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []

    def settings(self) -> OtlpSettings:
        protocol = self._protocol()
        endpoint, secure = self._endpoint(protocol)
        queue_size = self._value(("OTEL_BSP_MAX_QUEUE_SIZE",), None, _count)
        settings = OtlpSettings(
            protocol=protocol,
            endpoint=endpoint,
            secure=secure,
            headers=self._headers(protocol),
            **self._files(secure=secure),
            compression=self._otlp("COMPRESSION", "none", _compression),
            timeout_s=self._timeout(),
            delay_s=self._value(("OTEL_BSP_SCHEDULE_DELAY",), 1.0, _seconds),
            max_queue_spans=queue_size,
        )
        if self._problems:
            raise ConfigError("\n".join(self._problems))
        return settings

    def _find(self, names: tuple[str, ...]) -> tuple[str, str]:
        for name in names:
            if text := self._environ.get(name, "").strip():
                return name, text
        return names[-1], ""

    def _value(self, names: tuple[str, ...], default: Any, parse: Callable[[str], Any], *, secret: bool = False) -> Any:
        name, text = self._find(names)
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self._problems.append(f"{name}: {error}" if secret else f"{name}={text!r}: {error}")
            return default

    def _otlp(self, name: str, default: Any, parse: Callable[[str], Any], *, secret: bool = False) -> Any:
        return self._value((f"{_PREFIX}{_SIGNAL}{name}", _PREFIX + name), default, parse, secret=secret)

    def _protocol(self) -> Protocol:
        return cast("Protocol", self._otlp("PROTOCOL", "http/protobuf", _protocol))

    def _endpoint(self, protocol: Protocol) -> tuple[str, bool]:
        insecure = self._otlp("INSECURE", False, _boolean)
        default = _DEFAULT_ENDPOINTS[protocol]
        own, general = f"{_PREFIX}{_SIGNAL}ENDPOINT", f"{_PREFIX}ENDPOINT"

        def parse(text: str, *, append: bool) -> tuple[str, bool]:
            if protocol == "grpc":
                return grpc_target(text, insecure=insecure)
            return http_url(text, append=append)

        # secret: a URL may have a password in it, and endpoint.py says what is wrong without showing that
        if self._find((own,))[1]:
            found = self._value((own,), (default, False), lambda text: parse(text, append=False), secret=True)
        else:
            fallback = parse(default, append=True)
            found = self._value((general,), fallback, lambda text: parse(text, append=True), secret=True)
        return cast("tuple[str, bool]", found)

    def _headers(self, protocol: Protocol) -> tuple[tuple[str, str], ...]:
        headers = self._otlp("HEADERS", (), parse_headers, secret=True)
        if protocol == "grpc":
            for name, value in headers:
                if not (value.isascii() and value.isprintable()):
                    self._problems.append(f"{_PREFIX}HEADERS: gRPC carries printable ASCII only; {name} has more")
        return cast("tuple[tuple[str, str], ...]", headers)

    def _files(self, *, secure: bool) -> dict[str, Any]:
        # The specification keeps them for secure connections: without TLS nobody reads the files.
        if not secure:
            return {}
        files = {
            name: self._otlp(name.upper(), "", str) for name in ("certificate", "client_key", "client_certificate")
        }
        if bool(files["client_key"]) != bool(files["client_certificate"]):
            self._problems.append(f"{_PREFIX}CLIENT_KEY and {_PREFIX}CLIENT_CERTIFICATE: only one is set; give both")
        return files

    def _timeout(self) -> float:
        seconds: float = self._otlp("TIMEOUT", 10.0, _seconds)
        return seconds or math.inf


def _protocol(text: str) -> str:
    if text in _DEFAULT_ENDPOINTS:
        return text
    hint = "JSON is not offered; " if text == "http/json" else ""
    raise ValueError(f"{hint}write http/protobuf or grpc")


def _compression(text: str) -> str:
    if text.lower() in ("none", "gzip"):
        return text.lower()
    raise ValueError("write gzip or none")


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise ValueError("write true or false")


def _seconds(text: str) -> float:
    return _natural(text, "a whole number of milliseconds") / 1000


def _count(text: str) -> int:
    number = _natural(text, "a number of spans, 1 or more")
    if number == 0:
        raise ValueError("write a number of spans, 1 or more")
    return number


def _natural(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise ValueError(f"write {what}")
    return int(text)
