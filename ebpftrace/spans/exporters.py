# SPDX-License-Identifier: Apache-2.0
"""Span exporters by the OTEL_* variables, the way the SDK's auto configuration finds them."""

from __future__ import annotations

import logging
import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from opentelemetry.environment_variables import OTEL_TRACES_EXPORTER
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL

from ebpftrace.errors import ConfigError, EbpftraceError, UnsupportedError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from opentelemetry.sdk.trace.export import SpanExporter

_GROUP = "opentelemetry_traces_exporter"
_HTTP = "otlp_proto_http"
_GRPC = "otlp_proto_grpc"
_BY_PROTOCOL = {"http/protobuf": _HTTP, "grpc": _GRPC}
_HINTS = {
    _HTTP: "pip install 'ebpftrace[otlp]'",
    _GRPC: "pip install opentelemetry-exporter-otlp-proto-grpc, or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf and "
    "pip install 'ebpftrace[otlp]'",
}

_log = logging.getLogger("ebpftrace.spans")


def exporter_names(default: str = "otlp") -> list[str]:
    """List the exporters OTEL_TRACES_EXPORTER asks for; `none` is the empty list.

    Args:
        default: what an unset or empty variable means; the specification says `otlp`.
    """
    wanted = os.environ.get(OTEL_TRACES_EXPORTER, "").strip() or default
    names = [name.strip() for name in wanted.split(",")]
    return [name for name in names if name and name.lower() != "none"]


def load_exporters(default: str = "otlp") -> list[SpanExporter]:
    """Make the exporters of `exporter_names`. What cannot be made is one warning each, never an exception.

    Args:
        default: what an unset OTEL_TRACES_EXPORTER means.
    """
    exporters = []
    for name in exporter_names(default):
        try:
            exporters.append(load_exporter(name))
        except EbpftraceError as err:
            _log.warning("spans are not exported to %r: %s", name, err)
    return exporters


def load_exporter(name: str) -> SpanExporter:
    """Make one exporter by its entry point name, or by `otlp` and OTEL_EXPORTER_OTLP_[TRACES_]PROTOCOL.

    Without a protocol `otlp` is http/protobuf, as the specification recommends; where only the gRPC exporter is
    installed, that one.

    Raises:
        ConfigError: no such exporter or protocol, or the exporter refused its own OTEL_* settings.
        UnsupportedError: the OTLP exporter's package is not installed, or cannot be imported.
    """
    entry = find_exporter(name)
    try:
        # Whatever is installed under this name: the caller finds out what it is when it exports.
        return cast("SpanExporter", entry.load()())
    except ImportError as err:
        raise UnsupportedError(f"span exporter {entry.name}", str(err), _HINTS.get(entry.name, "")) from err
    except Exception as err:
        raise ConfigError(
            f"span exporter {entry.name} refused its settings: {err}; check the OTEL_EXPORTER_* variables"
        ) from err


def find_exporter(name: str) -> EntryPoint:
    """Find the installed exporter that `load_exporter` would make, without importing it.

    Raises:
        ConfigError: no such exporter or protocol.
        UnsupportedError: the OTLP exporter's package is not installed.
    """
    candidates = _otlp_names() if name == "otlp" else [name]
    for candidate in candidates:
        for entry in entry_points(group=_GROUP, name=candidate):
            return entry
    if hint := _HINTS.get(candidates[0]):
        raise UnsupportedError("the OTLP span exporter", f"no installed package provides {candidates[0]}", hint)
    known = sorted({entry.name for entry in entry_points(group=_GROUP)} | {"otlp", "none"})
    raise ConfigError(f"{OTEL_TRACES_EXPORTER} names {name!r}, which is not installed; known here: {', '.join(known)}")


def _otlp_names() -> list[str]:
    for variable in (OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, OTEL_EXPORTER_OTLP_PROTOCOL):
        protocol = os.environ.get(variable, "").strip()
        if protocol in _BY_PROTOCOL:
            return [_BY_PROTOCOL[protocol]]
        if protocol:
            raise ConfigError(f"{variable} is {protocol!r}; the OTLP exporters here speak {' and '.join(_BY_PROTOCOL)}")
    return [_HTTP, _GRPC]
