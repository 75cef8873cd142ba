# SPDX-License-Identifier: Apache-2.0
"""What a program's YAML file says.

The tracing half of cloudflare/ebpf_exporter's format, with what it lacks: a span may name the C struct of its record,
and the struct's BTF in the object then gives offsets, sizes and types.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Role = Literal[
    "",  # an attribute
    "trace_id",
    "span_id",
    "parent_span_id",
    "start",  # ns, CLOCK_MONOTONIC
    "duration",  # ns
    "span_name",
    "kind",  # "internal", "server", "client", "producer", "consumer", or OTLP's number of it
    "status",  # "unset", "ok", "error", or OTLP's number of it
    "error",  # text: the status is error, with this description
    "service",  # text: service.name of this span's resource
    "link_trace_id",  # with the link_span_id that follows it: one link; an all-zero id is none
    "link_span_id",
    "event",  # ns, CLOCK_MONOTONIC: an event of the span, named by `event`; 0 = it did not happen
]

RESERVED: dict[str, Role] = {
    "trace_id": "trace_id",
    "span_id": "span_id",
    "parent_span_id": "parent_span_id",
    "span_monotonic_timestamp_ns": "start",
    "span_duration_ns": "duration",
    "span_name": "span_name",
    "span_kind": "kind",
    "span_status": "status",
    "span_error": "error",
    "service_name": "service",
    "link_trace_id": "link_trace_id",
    "link_span_id": "link_span_id",
}
"""Labels whose names give them a role; the first six are ebpf_exporter's."""


class DecoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step from a field's value to an attribute's.

    Args:
        name: of a decoder in `ebpftrace.decoders`.
        static_map: for the decoder of that name: value → text.
        allow_unknown: for static_map: a value that it does not have stays as it is.
        regexps: for the decoder "regexp"; a record that none of them matches makes no span.
    """

    name: str
    static_map: dict[int | str, str] = {}
    allow_unknown: bool = False
    regexps: list[str] = []


class LabelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A field of the record and what becomes of it.

    Args:
        name: the field; in the label form it is free, and the attribute's key unless `attribute` says otherwise.
        size: bytes, in the label form; 0 in the struct form.
        padding: bytes between this field and the next, in the label form.
        attribute: the attribute's key; "" = the name.
        role: what it is, if not an attribute; some names have a role of their own (`RESERVED`).
        event: the event's name, for the role "event".
        omit: a value that means "nothing": no attribute then.
        decoders: applied in this order; none, in the struct form, for a value as it is.
    """

    name: str
    size: int = 0
    padding: int = 0
    attribute: str = ""
    role: Role = ""
    event: str = ""
    omit: int | str | None = None
    decoders: list[DecoderConfig] = []


class SpanConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of record and the span it becomes.

    Args:
        ringbuf: the map it comes through.
        name: the span's name; "" = the ring buffer's.
        service: `service.name` of its resource; "" = the agent's.
        struct: the C struct of the record; "" = the labels give the layout, one after the other.
        type: the record's `ebt_hdr.type`, where several kinds come through one ring buffer.
        base: labels that come before `labels` without being written down: "ebpftrace" is `struct ebt_span`,
            "ebpf_exporter" the 48 bytes of that project's `span_base_t`. In the struct form the head is found by
            itself.
        kind: the span's kind, unless a label says otherwise.
        hook: where in the kernel it comes from ("tp_btf/sched_switch"); an attribute of the span.
        labels: its attributes; none, in the struct form, means all fields.
    """

    ringbuf: str
    name: str = ""
    service: str = ""
    struct: str = ""
    type: int | None = None
    base: Literal["", "ebpftrace", "ebpf_exporter"] = ""
    kind: Literal["", "internal", "server", "client", "producer", "consumer"] = ""
    hook: str = ""
    labels: list[LabelConfig] = []


class TracingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part about spans.

    Args:
        spans: one for each kind of record.
    """

    spans: list[SpanConfig] = []


class CgroupIdMapConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A map of the object that is kept filled with the ids of certain cgroups.

    Args:
        name: the map; values are u64, all of them 1.
        type: "hash" has u64 cgroup ids as keys; "cgrp_storage" is storage attached to the cgroups.
        regexps: of cgroup paths below the mount point.
    """

    name: str
    regexps: list[str]
    type: Literal["hash", "cgrp_storage"] = "hash"


class ProgramConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A program's file.

    Args:
        description: one line for people.
        tracing: its spans.
        kaddrs: kernel symbols whose addresses go into `const volatile kaddr_<symbol>` before loading.
        cgroup_id_map: a map to fill.
        knobs: what the agent sets before loading: a number or boolean for a `const volatile` variable; a list of texts
            for a hash map of that name with char[] keys. Applications set theirs by `ebpftrace.start()`.
        metrics: ebpf_exporter's other half; accepted and ignored.
    """

    tracing: TracingConfig = msgspec.field(default_factory=TracingConfig)
    description: str = ""
    kaddrs: list[str] = []
    cgroup_id_map: CgroupIdMapConfig | None = None
    knobs: dict[str, bool | int | list[str]] = {}
    metrics: Any = None
