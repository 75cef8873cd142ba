# SPDX-License-Identifier: Apache-2.0
"""The counters of an `OtlpSink`."""

from __future__ import annotations

import msgspec

from ebpftrace.spans.sink import SinkStats


class OtlpStats(SinkStats, frozen=True):
    """What became of the spans: at any moment `emitted == exported + failed + dropped + queued_spans`.

    Args:
        failures: `failed` by reason: "refused" (whole requests, not to be tried again), "rejected" (single spans of
            accepted requests), "error" (the exporter's own fault).
        drops: `dropped` by reason: "queue_full", "expired" (a reachable server would not take the request for
            minutes), "invalid" (no trace or span id), "closed" (put after closing, or not sent by its deadline).
        queued_spans: waiting, or in the request that is on its way.
        queued_bytes: of those.
        requests: attempts made.
        retries: of those, the repeated ones.
        last_error: why the last attempt that failed did.
        last_error_at: when, in epoch seconds; 0 = none did.
    """

    failures: dict[str, int] = msgspec.field(default_factory=dict)
    drops: dict[str, int] = msgspec.field(default_factory=dict)
    queued_spans: int = 0
    queued_bytes: int = 0
    requests: int = 0
    retries: int = 0
    last_error: str = ""
    last_error_at: float = 0.0
