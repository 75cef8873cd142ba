# SPDX-License-Identifier: Apache-2.0
"""Encoded spans to a collector: settings, a bounded queue, one sending thread, OTLP over HTTP and gRPC.

    put(chunks) ─▶ outbox ─▶ sender ─▶ message ─▶ http_client | grpc_client ─▶ collector
    reader's thread     own thread: request, retry, count

Needs neither the OpenTelemetry SDK nor the protobuf package; HTTP takes urllib3, gRPC takes grpcio.
"""

from __future__ import annotations

from ebpftrace.spans.otlp.settings import OtlpSettings, read_settings
from ebpftrace.spans.otlp.sink import OtlpSink
from ebpftrace.spans.otlp.stats import OtlpStats

__all__ = ["OtlpSettings", "OtlpSink", "OtlpStats", "read_settings"]
