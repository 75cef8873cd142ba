# SPDX-License-Identifier: Apache-2.0
"""OTLP over gRPC, by grpcio, with messages as raw bytes."""

from __future__ import annotations

import math
import os
import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebpftrace._version import version
from ebpftrace.errors import ConfigError, UnsupportedError
from ebpftrace.spans.otlp.message import partial_success, retry_delay_s
from ebpftrace.spans.otlp.retry import MAX_WAIT_S
from ebpftrace.spans.otlp.transport import Answer, one_line

if TYPE_CHECKING:
    from ebpftrace.spans.otlp.settings import OtlpSettings

_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_AGAIN = {"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}
_DETAILS = "grpc-status-details-bin"


class GrpcTransport:
    """Calls TraceService/Export at one target.

    The channel, and with it gRPC's own threads, is made at the first request: threads that are there before the
    process gives its privileges up would keep theirs.

    Args:
        settings: endpoint, headers, TLS files, compression.

    Raises:
        ConfigError: a certificate or key cannot be read.
        UnsupportedError: grpcio is not installed.
    """

    def __init__(self, settings: OtlpSettings) -> None:
        self._grpc = _import_grpc()
        self._target = settings.endpoint
        self._metadata = [*settings.headers]
        gzip, none = self._grpc.Compression.Gzip, self._grpc.Compression.NoCompression
        self._compression = gzip if settings.compression == "gzip" else none
        self._credentials = _credentials(self._grpc, settings) if settings.secure else None
        timeout_ms = 20_000 if math.isinf(settings.timeout_s) else int(settings.timeout_s * 1000)
        self._options = [
            ("grpc.primary_user_agent", f"OTel-OTLP-Exporter-Python/{version} ebpftrace/{version}"),
            # a channel has a backoff of its own, up to two minutes: a collector that is back would not be noticed
            ("grpc.initial_reconnect_backoff_ms", max(100, int(settings.retry_first_s * 500))),
            ("grpc.max_reconnect_backoff_ms", max(100, int(settings.retry_max_s * 1000))),
            ("grpc.min_reconnect_backoff_ms", max(100, timeout_ms)),
        ]
        self._lock = threading.Lock()
        self._closed = False
        self._channel: Any = None
        self._export: Any = None

    def prepare(self, request: bytes) -> bytes:
        """Leave it: gRPC compresses by itself."""
        return request

    def send(self, body: bytes, timeout_s: float) -> Answer:
        """Call once."""
        try:
            export = self._open()
            response = export(
                body,
                timeout=None if math.isinf(timeout_s) else timeout_s,
                metadata=self._metadata,
                compression=self._compression,
            )
        except self._grpc.RpcError as error:
            return _failure(error)
        except ValueError as error:  # the channel was closed meanwhile, or a header is none for gRPC
            return Answer("refused", str(error))
        try:
            rejected, text = partial_success(response)
        except ValueError:
            rejected, text = 0, ""  # it said yes; what else it said cannot be read
        return Answer("accepted", one_line(text), rejected=rejected)

    def _open(self) -> Any:
        with self._lock:
            if self._closed:
                raise ValueError("the exporter is closed")
            if self._export is None:
                if self._credentials is None:
                    self._channel = self._grpc.insecure_channel(self._target, options=self._options)
                else:
                    self._channel = self._grpc.secure_channel(self._target, self._credentials, options=self._options)
                self._export = self._channel.unary_unary(_EXPORT)
            return self._export

    def close(self) -> None:
        """Close the channel, which cancels a call on its way."""
        with self._lock:
            self._closed = True
            if self._channel is not None:
                self._channel.close()


def _import_grpc() -> Any:
    # gRPC writes a line to stderr for every connection that fails; what failed is in the counters and, once, in the log
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        return import_module("grpc")
    except ImportError as error:
        raise UnsupportedError(
            "OTLP over gRPC",
            str(error),
            "pip install 'ebpftrace[grpc]', or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
        ) from error


def _credentials(grpc: Any, settings: OtlpSettings) -> Any:
    trusted = _pem("CERTIFICATE", settings.certificate)
    key, chain = _pem("CLIENT_KEY", settings.client_key), _pem("CLIENT_CERTIFICATE", settings.client_certificate)
    return grpc.ssl_channel_credentials(trusted, key, chain)


def _pem(variable: str, path: str) -> bytes | None:
    if not path:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror
    else:
        if b"-----BEGIN " in content:
            return content
        reason = "it is not PEM"
    # gRPC itself would take anything, and then never connect
    raise ConfigError(f"OTEL_EXPORTER_OTLP_{variable}: cannot use {path}: {reason}; give a readable PEM file")


def _failure(error: Any) -> Answer:
    code = error.code().name
    text = one_line(f"{code}: {error.details()}")
    wait_s = _wait_s(error)
    if code in _AGAIN or (code == "RESOURCE_EXHAUSTED" and wait_s is not None):
        return Answer("again", text, wait_s=wait_s or None, reached=code != "UNAVAILABLE")
    return Answer("refused", text)


def _wait_s(error: Any) -> float | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS:
            try:
                delay_s = retry_delay_s(value)
            except ValueError:
                return None
            return None if delay_s is None else min(delay_s, MAX_WAIT_S)
    return None
