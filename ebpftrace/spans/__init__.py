# SPDX-License-Identifier: Apache-2.0
"""From decoded records to spans in somebody's backend.

Importing this package does not import the OpenTelemetry SDK: `sdk`, `export` and `otlp_json` do, and only a process
that exports needs them.
"""

from __future__ import annotations

from ebpftrace.spans.clock import Clock
from ebpftrace.spans.model import AttributeValue, KernelSpan
from ebpftrace.spans.sink import NullSink, Sink, SinkStats

__all__ = ["AttributeValue", "Clock", "KernelSpan", "NullSink", "Sink", "SinkStats"]
