# SPDX-License-Identifier: Apache-2.0
"""OTLP over HTTP/1.1 with protobuf bodies, by urllib3: one kept-alive connection, TLS, proxies by the environment."""

from __future__ import annotations

import base64
import gzip
import math
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from ebpftrace._version import version
from ebpftrace.errors import ConfigError, UnsupportedError
from ebpftrace.spans.otlp.message import partial_success, status_text
from ebpftrace.spans.otlp.retry import retry_after_s
from ebpftrace.spans.otlp.transport import Answer, one_line

try:
    import urllib3
    from urllib3 import exceptions
except ImportError as error:
    raise UnsupportedError("OTLP over HTTP", str(error), "pip install 'ebpftrace[agent]'") from error

if TYPE_CHECKING:
    from ebpftrace.spans.otlp.settings import OtlpSettings

USER_AGENT = f"OTel-OTLP-Exporter-Python/{version} ebpftrace/{version}"
_PROTOBUF = "application/x-protobuf"
_AGAIN = {429, 502, 503, 504}
_MAX_ANSWER = 1 << 16
_GRPC_PORT = 4317


class HttpTransport:
    """Posts requests to one URL.

    Args:
        settings: endpoint, headers, TLS files, compression.

    Raises:
        ConfigError: a certificate or key cannot be read, or the proxy of the environment is of no kind known here.
    """

    def __init__(self, settings: OtlpSettings) -> None:
        self._url = settings.endpoint
        self._gzip = settings.compression == "gzip"
        self._headers = {"user-agent": USER_AGENT, **_encoded(settings.headers), "content-type": _PROTOBUF}
        if self._gzip:
            self._headers["content-encoding"] = "gzip"
        context = tls_context(settings) if settings.secure else None
        self._pool = _pool(self._url, context)

    def prepare(self, request: bytes) -> bytes:
        """Compress at the fastest level: spans of one program repeat so much that the others gain little."""
        return gzip.compress(request, compresslevel=1, mtime=0) if self._gzip else request

    def send(self, body: bytes, timeout_s: float) -> Answer:
        """Post once. Redirects are not followed: they would take the headers, credentials included, elsewhere."""
        limit = None if math.isinf(timeout_s) else timeout_s
        deadline = time.monotonic() + timeout_s
        try:
            response = self._pool.urlopen(
                "POST",
                self._url,
                body=body,
                headers=self._headers,
                timeout=urllib3.Timeout(total=limit),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            with response:
                content = _read(response, deadline)
                response.release_conn()
        except (exceptions.LocationValueError, exceptions.InvalidHeader) as error:
            return Answer("refused", str(error))
        except (exceptions.HTTPError, OSError) as error:
            return Answer("again", self._reason(error, timeout_s), reached=_reached(error))
        return _answer(response, content)

    def close(self) -> None:
        """Close the connection if it is idle; one in use ends with its timeout."""
        self._pool.clear()

    def _reason(self, error: Exception, timeout_s: float) -> str:
        cause = error
        while isinstance(cause.__cause__ or cause.__context__, Exception):
            cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]  # the line above looked
        if isinstance(error, exceptions.TimeoutError) and not _refused_connection(error):
            return f"no answer within {timeout_s:.3g} s"
        text = (cause.strerror if isinstance(cause, OSError) else "") or str(cause) or type(cause).__name__
        if isinstance(error, exceptions.ProxyError):
            text = f"proxy: {text}"
        if isinstance(error, exceptions.ProtocolError) and urlsplit(self._url).port == _GRPC_PORT:
            text += "; port 4317 is OTLP/gRPC's: set OTEL_EXPORTER_OTLP_PROTOCOL=grpc?"
        return text


def tls_context(settings: OtlpSettings) -> ssl.SSLContext:
    """Trust what the settings, else the machine, trusts; show the client's certificate when there is one.

    Raises:
        ConfigError: a file is missing, unreadable or not what it should be.
    """
    context = ssl.create_default_context()
    if settings.certificate:
        context = _loaded("CERTIFICATE", settings.certificate, lambda: _trusting(settings.certificate))
    if settings.client_certificate:
        _loaded(
            "CLIENT_CERTIFICATE and CLIENT_KEY",
            f"{settings.client_certificate}, {settings.client_key}",
            lambda: context.load_cert_chain(settings.client_certificate, settings.client_key, password=""),
        )
    return context


def _trusting(path: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=path)


def _loaded(variable: str, files: str, load: Any) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_{variable}: cannot use {files}: {reason}; give readable, unencrypted PEM files"
        ) from error


def _encoded(headers: tuple[tuple[str, str], ...]) -> dict[str, str]:
    # http.client writes Latin-1: UTF-8 goes through it byte by byte.
    return {name: value.encode().decode("latin-1") for name, value in headers}


def _pool(url: str, context: ssl.SSLContext | None) -> urllib3.PoolManager:
    tls = {} if context is None else {"ssl_context": context}
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return urllib3.PoolManager(num_pools=1, maxsize=1, **tls)  # type: ignore[arg-type]  # its stubs take no dict
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    found = urlsplit(proxy)
    if found.scheme not in ("http", "https") or not found.hostname:
        raise ConfigError(f"the environment's {parts.scheme} proxy is no http:// or https:// URL; or set NO_PROXY")
    return urllib3.ProxyManager(proxy, proxy_headers=_proxy_headers(found), num_pools=1, maxsize=1, **tls)  # type: ignore[arg-type]


def _proxy_headers(proxy: SplitResult) -> dict[str, str] | None:
    if not proxy.username:
        return None
    credentials = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"proxy-authorization": f"Basic {base64.b64encode(credentials).decode()}"}


def _read(response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    # The timeout is one of each receive: a server that sends a byte a second would hold us for hours.
    content = b""
    while len(content) < _MAX_ANSWER:
        part = response.read1(_MAX_ANSWER)
        if not part:
            return content
        content += part
        if time.monotonic() > deadline:
            response.close()
            raise exceptions.ReadTimeoutError(None, None, "slow answer")  # type: ignore[arg-type]  # only its text uses them
    response.close()  # not worth reading to its end, so the connection is not worth keeping
    return content


def _refused_connection(error: Exception) -> bool:
    return isinstance(error, exceptions.NewConnectionError)  # a subclass of the time-outs, of all things


def _reached(error: Exception) -> bool:
    return not isinstance(error, exceptions.ConnectTimeoutError | exceptions.ProxyError | exceptions.SSLError)


def _answer(response: urllib3.BaseHTTPResponse, content: bytes) -> Answer:
    protobuf = response.headers.get("content-type", "").startswith(_PROTOBUF)
    if 200 <= response.status < 300:
        rejected, text = 0, ""
        if protobuf:
            try:
                rejected, text = partial_success(content)
            except ValueError:
                text = ""  # it said yes; what else it said cannot be read
        return Answer("accepted", one_line(text), rejected=rejected)
    text = f"{response.status} {response.reason or ''}".strip()
    # a server repeats the query of the request there, and some put a key into it
    location = response.headers.get("location", "").partition("?")[0]
    if said := one_line(_said(content, protobuf=protobuf) or location):
        text += f": {said}"
    if response.status in _AGAIN:
        return Answer("again", text, wait_s=retry_after_s(response.headers.get("retry-after")))
    return Answer("refused", text)


def _said(content: bytes, *, protobuf: bool) -> str:
    if protobuf:
        try:
            return status_text(content)
        except ValueError:
            return ""
    return content.decode(errors="replace")
