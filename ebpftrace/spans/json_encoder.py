# SPDX-License-Identifier: Apache-2.0
"""Spans to OTLP/JSON.

The same fields as the protobuf encoding (opentelemetry-proto 1.x; "JSON Protobuf Encoding" in the OTLP specification):
lowerCamelCase names, ids in hex, 64-bit integers as decimal text, enums as numbers, bytes in base64, defaults left out.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext
    from opentelemetry.trace.status import Status

_HAS_IS_REMOTE = 0x100  # SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_IS_REMOTE = 0x200  # SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_INT64_MAX = (1 << 63) - 1
_INT64_MIN = -(1 << 63)

_encoder = msgspec.json.Encoder()
Json = dict[str, Any]


def encode(spans: Sequence[ReadableSpan]) -> bytes:
    """Encode spans as one compact ExportTraceServiceRequest, without a newline.

    Never fails on a value: what OTLP has no type for becomes its text, an integer beyond int64 its decimal digits,
    a lone surrogate "?" (UTF-8 has none). A link keeps its tracestate, which the protobuf exporter of the SDK leaves
    out.
    """
    request = {"resourceSpans": _resource_spans(spans)} if spans else {}
    try:
        return _encoder.encode(request)
    except UnicodeEncodeError:
        return _encoder.encode(_valid_text(request))


def _resource_spans(spans: Sequence[ReadableSpan]) -> list[Json]:
    groups: dict[Resource, dict[InstrumentationScope | None, list[Json]]] = {}
    # Hashing a resource is costly and batches share few of them: the object's identity is asked first.
    known: dict[tuple[int, int], list[Json]] = {}
    for span in spans:
        resource, scope = span.resource, span.instrumentation_scope
        key = (id(resource), id(scope))
        group = known.get(key)
        if group is None:
            group = known[key] = groups.setdefault(resource, {}).setdefault(scope, [])
        group.append(_span(span))
    return [_resource_group(resource, scopes) for resource, scopes in groups.items()]


def _resource_group(resource: Resource, scopes: dict[InstrumentationScope | None, list[Json]]) -> Json:
    group: Json = {
        "resource": _with_attributes({}, resource.attributes),
        "scopeSpans": [_scope_group(scope, spans) for scope, spans in scopes.items()],
    }
    if resource.schema_url:
        group["schemaUrl"] = resource.schema_url
    return group


def _scope_group(scope: InstrumentationScope | None, spans: list[Json]) -> Json:
    group: Json = {"scope": {}, "spans": spans}
    if scope is None:
        return group
    if scope.name:
        group["scope"]["name"] = scope.name
    if scope.version:
        group["scope"]["version"] = scope.version
    # Scope attributes came with SDK 1.27.
    _with_attributes(group["scope"], getattr(scope, "attributes", None))
    if scope.schema_url:
        group["schemaUrl"] = scope.schema_url
    return group


def _span(span: ReadableSpan) -> Json:
    fields: Json = {}
    parent = span.parent
    if span.context is not None:
        _with_context(fields, span.context)
    if parent is not None:
        fields["parentSpanId"] = f"{parent.span_id:016x}"
    fields["flags"] = _flags(parent)
    if span.name:
        fields["name"] = span.name
    fields["kind"] = span.kind.value + 1  # the API counts from 0; OTLP keeps 0 for "unspecified"
    if span.start_time:
        fields["startTimeUnixNano"] = str(span.start_time)
    if span.end_time:
        fields["endTimeUnixNano"] = str(span.end_time)
    _with_attributes(fields, span.attributes)
    if span.events:
        fields["events"] = [_event(event) for event in span.events]
    if span.links:
        fields["links"] = [_link(link) for link in span.links]
    if span.status is not None:
        fields["status"] = _status(span.status)
    _with_dropped(fields, span)
    return fields


def _with_dropped(fields: Json, span: ReadableSpan) -> None:
    if span.dropped_attributes:
        fields["droppedAttributesCount"] = span.dropped_attributes
    if span.dropped_events:
        fields["droppedEventsCount"] = span.dropped_events
    if span.dropped_links:
        fields["droppedLinksCount"] = span.dropped_links


def _with_context(fields: Json, context: SpanContext) -> None:
    fields["traceId"] = f"{context.trace_id:032x}"
    fields["spanId"] = f"{context.span_id:016x}"
    if context.trace_state:
        fields["traceState"] = ",".join(f"{key}={value}" for key, value in context.trace_state.items())


def _flags(context: SpanContext | None) -> int:
    return _HAS_IS_REMOTE | _IS_REMOTE if context is not None and context.is_remote else _HAS_IS_REMOTE


def _event(event: Event) -> Json:
    fields: Json = {}
    if event.timestamp:
        fields["timeUnixNano"] = str(event.timestamp)
    if event.name:
        fields["name"] = event.name
    _with_attributes(fields, event.attributes)
    if event.dropped_attributes:
        fields["droppedAttributesCount"] = event.dropped_attributes
    return fields


def _link(link: Link) -> Json:
    fields: Json = {}
    _with_context(fields, link.context)
    fields["flags"] = _flags(link.context)
    _with_attributes(fields, link.attributes)
    if link.dropped_attributes:
        fields["droppedAttributesCount"] = link.dropped_attributes
    return fields


def _status(status: Status) -> Json:
    fields: Json = {}
    if status.status_code.value:
        fields["code"] = status.status_code.value
    if status.description:
        fields["message"] = status.description
    return fields


def _with_attributes(fields: Json, attributes: Mapping[str, Any] | None) -> Json:
    if attributes:
        fields["attributes"] = [_pair(key, value) for key, value in attributes.items()]
    return fields


def _pair(key: str, value: Any) -> Json:
    return {"key": key, "value": _value(value)} if key else {"value": _value(value)}


def _value(value: Any) -> Json:  # noqa: PLR0911  (one return a type)
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):  # before int, which it is
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)} if _INT64_MIN <= value <= _INT64_MAX else {"stringValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else _non_finite(value)}
    if value is None:
        return {}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytesValue": base64.b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        pairs = [_pair(str(key), item) for key, item in value.items()]
        return {"kvlistValue": {"values": pairs} if pairs else {}}
    if isinstance(value, Sequence):
        items = [_value(item) for item in value]
        return {"arrayValue": {"values": items} if items else {}}
    return {"stringValue": str(value)}


def _non_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _valid_text(value: Any) -> Any:
    # msgspec passes Python strings on as UTF-8, and os.fsdecode()d file names may hold surrogates.
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_valid_text(item) for item in value]
    if isinstance(value, dict):
        return {_valid_text(key): _valid_text(item) for key, item in value.items()}
    return value
