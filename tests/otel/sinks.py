# SPDX-License-Identifier: Apache-2.0
"""Native sinks for tests: quick, and closed in the end."""

from __future__ import annotations

import contextlib
import dataclasses

from ebpftrace.spans.otlp import OtlpSink, read_settings

FAST = {"OTEL_BSP_SCHEDULE_DELAY": "20"}
RESOURCE = {"service.name": "kernel", "host.name": "here", "service.version": "1"}


@contextlib.contextmanager
def open_sink(collector, *, queue_bytes=64 << 20, retry_first_s=0.05, retry_max_s=0.3, give_up_s=300.0, **variables):
    """A sink for this collector."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} | FAST | variables
    settings = dataclasses.replace(
        read_settings(environ),
        max_queue_bytes=queue_bytes,
        retry_first_s=retry_first_s,
        retry_max_s=retry_max_s,
        give_up_s=give_up_s,
    )
    sink = OtlpSink(settings, RESOURCE)
    try:
        yield sink
    finally:
        collector.hold.set()
        sink.close(5)
