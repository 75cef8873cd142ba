# SPDX-License-Identifier: Apache-2.0
"""Which way spans leave: OTEL_TRACES_EXPORTER and OTEL_SDK_DISABLED, strictly read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from opentelemetry.environment_variables import OTEL_TRACES_EXPORTER
from opentelemetry.sdk.environment_variables import OTEL_SDK_DISABLED

from ebpftrace.errors import ConfigError
from ebpftrace.spans.export import ExporterSink
from ebpftrace.spans.exporters import load_exporter
from ebpftrace.spans.otlp.settings import read_settings
from ebpftrace.spans.otlp.sink import OtlpSink
from ebpftrace.spans.sink import NullSink

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

    from ebpftrace.spans.model import AttributeValue

Encoder = Literal["auto", "native", "sdk"]


def make_exporter(
    environ: Mapping[str, str], resource: Resource, *, encoder: Encoder = "auto", more: Sequence[SpanExporter] = ()
) -> OtlpSink | ExporterSink | NullSink:
    """Make the sink that the environment asks for.

    `otlp`, and nothing set, is the native sink. Any other exporter, and several together, go through the SDK and its
    exporters, which read the process's own environment.

    Args:
        environ: OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_*, OTEL_BSP_*.
        resource: what the spans are said to come from.
        more: exporters beside those of the environment, which take the SDK's path.
        encoder: "sdk" sends `otlp` through the SDK too; "native" refuses what only the SDK can do.

    Raises:
        ConfigError: a variable is wrong. A daemon says so when it is started, not hours later by what is missing.
        UnsupportedError: the package of the exporter is not installed.
    """
    if environ.get(OTEL_SDK_DISABLED, "").strip().lower() == "true":
        return NullSink(f"{OTEL_SDK_DISABLED} is true")
    wanted = environ.get(OTEL_TRACES_EXPORTER, "").strip() or "otlp"
    names = [name.strip() for name in wanted.split(",") if name.strip() and name.strip().lower() != "none"]
    if not names and not more:
        return NullSink(f"{OTEL_TRACES_EXPORTER} is {wanted}")
    if names == ["otlp"] and encoder != "sdk" and not more:
        return OtlpSink(read_settings(environ), cast("Mapping[str, AttributeValue]", resource.attributes))
    if encoder == "native":
        raise ConfigError(
            f"{OTEL_TRACES_EXPORTER}={wanted}: the native encoder speaks otlp only; "
            f"set {OTEL_TRACES_EXPORTER}=otlp, or choose the SDK's encoder"
        )
    if "otlp" in names:
        read_settings(environ)  # the SDK's exporters take a mistyped endpoint without a word
    try:
        return ExporterSink([*(load_exporter(name) for name in names), *more], resource)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the OTEL_BSP_* variables contradict each other: {error}") from error
