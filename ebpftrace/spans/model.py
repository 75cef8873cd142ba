# SPDX-License-Identifier: Apache-2.0
"""The one thing every sink receives: a record of the kernel, decoded and dated."""

from __future__ import annotations

import msgspec

AttributeValue = bool | int | float | str | tuple[str, ...] | tuple[int, ...]
"""What a decoder may produce. Integers may be anything a u64 holds; a sink writes those above int64 as decimal text."""


class KernelSpan(msgspec.Struct, frozen=True, gc=False):
    """One span made of one record.

    Not tracked by the garbage collector: hundreds of thousands may be alive at once and none can be part of a cycle.
    The attributes dict is shared with the sinks, so nobody changes it after construction.

    Args:
        trace_id: 128 bits; 0 makes the span unusable and a sink drops it.
        span_id: 64 bits, chosen by the kernel; 0 likewise.
        parent_span_id: 0 means a root span.
        name: the span's name.
        start_ns: epoch nanoseconds.
        end_ns: epoch nanoseconds.
        attributes: typed attributes.
        program: stem of the program that submitted the record.
        error: description of the failure, which makes the status an error; None when there was none.
        status: "unset", "ok" or "error"; `error` wins.
        kind: "internal", "server", "client", "producer" or "consumer".
        service: `service.name` of its resource; "" = the sink's own.
        links: (trace id, span id) of spans elsewhere that have to do with it.
        events: (name, epoch nanoseconds) of what happened within it.
    """

    trace_id: int
    span_id: int
    parent_span_id: int
    name: str
    start_ns: int
    end_ns: int
    attributes: dict[str, AttributeValue]
    program: str
    error: str | None = None
    status: str = "unset"
    kind: str = "internal"
    service: str = ""
    links: tuple[tuple[int, int], ...] = ()
    events: tuple[tuple[str, int], ...] = ()
