# SPDX-License-Identifier: Apache-2.0
"""OTLP JSON, one request a line or one document, to spans.

The OTLP/JSON mapping is not protobuf's own JSON: ids are hex, never base64, 64-bit integers may be strings or numbers,
and enums are numbers. Names of enums are read as well, because some exporters write them.
"""

from __future__ import annotations

import gc
import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebpftrace.errors import EbpftraceError
from ebpftrace.viewer.trace import Event, Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ebpftrace.viewer.trace import AttributeValue

_OTHER_SIGNALS = ("resourceMetrics", "resourceLogs", "resourceProfiles")
_HEX = frozenset("0123456789abcdef")
_MAX_TIME = 2**64 - 1
_MAX_NESTING = 50
_STATUS_ERROR = (2, "STATUS_CODE_ERROR")


class TraceFileError(EbpftraceError, ValueError):
    """A file is not OTLP JSON; the message names the line."""


@dataclass(slots=True)
class Document:
    """What a file holds: its spans, and what had to be left out or mended to read them."""

    spans: list[Span] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@contextmanager
def paused_gc() -> Iterator[None]:
    """Keep the cycle collector from walking a growing tree again and again: it halves the time for a large file."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load(path: str) -> Document:
    """Read a file, or standard input for `-`.

    Raises:
        TraceFileError: the file cannot be read, or is not OTLP JSON.
    """
    try:
        if path == "-":
            return parse(sys.stdin.buffer)
        with Path(path).open("rb") as lines, paused_gc():
            return parse(lines)
    except OSError as error:
        raise TraceFileError(f"cannot read it: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, TraceFileError):
            raise
        raise TraceFileError(f"cannot open it: {error}") from error  # a null byte in the path


def parse(lines: Iterable[bytes]) -> Document:
    """Read OTLP JSON lines; when the first line is not JSON by itself, the whole is read as JSON document(s).

    A last line that was cut off (its writer is still busy, or was killed) is left out with a note.

    Raises:
        TraceFileError: the input is empty, not JSON, or JSON but not OTLP.
    """
    reader = _Reader()
    numbered = enumerate(lines, 1)
    for number, raw in numbered:
        text = reader.decode(raw, number)
        if not text.strip():
            continue
        try:
            value = _decode_json(text)
        except ValueError as error:
            if not reader.values:
                rest = "".join(reader.decode(later, position) for position, later in numbered)
                reader.add_documents(text + rest, number)
            elif raw.endswith(b"\n"):
                raise _not_json(error, number) from error
            else:
                reader.document.notes.append(f"line {number} is cut off and was left out")
            break
        reader.add(value, number)
    return reader.finish()


def _decode_json(text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _not_json(error: ValueError, line: int) -> TraceFileError:
    if isinstance(error, json.JSONDecodeError):
        return TraceFileError(f"line {line + error.lineno - 1}: not JSON: {error.msg} (column {error.colno})")
    return TraceFileError(f"line {line}: not JSON: {str(error).partition(';')[0]}")


class _Reader:
    """Collects spans and remembers on which line it is, for its errors."""

    def __init__(self) -> None:
        self.document = Document()
        self.values = 0
        self._line = 0
        self._other_signals = 0
        self._bad_utf8: list[int] = []

    def decode(self, raw: bytes, line: int) -> str:
        if line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._bad_utf8.append(line)
            return raw.decode(errors="replace")

    def add_documents(self, text: str, line: int) -> None:
        decoder = json.JSONDecoder()
        position = 0
        while position < len(text):
            if text[position].isspace():
                position += 1
                continue
            here = line + text.count("\n", 0, position)
            try:
                value, position = decoder.raw_decode(text, position)
            except RecursionError as error:
                raise TraceFileError(f"line {here}: not JSON: nested too deeply") from error
            except json.JSONDecodeError as error:
                raise _not_json(error, line) from error  # its line number counts from the start of the text
            except ValueError as error:
                raise _not_json(error, here) from error
            self.add(value, here)

    def add(self, value: object, line: int) -> None:
        self.values += 1
        self._line = line
        for request in value if isinstance(value, list) else [value]:
            if not isinstance(request, dict):
                raise self._error(f"JSON, but not OTLP: expected an object, found {_kind(request)}")
            if "resourceSpans" in request:
                for group in self._objects(request, "resourceSpans"):
                    self._add_resource(group)
            elif any(signal in request for signal in _OTHER_SIGNALS):
                self._other_signals += 1
            elif request:
                keys = ", ".join(repr(key[:30]) for key in list(request)[:4])
                raise self._error(f"JSON, but not an OTLP trace: no 'resourceSpans', only {keys}")

    def finish(self) -> Document:
        notes = self.document.notes
        if self._other_signals:
            notes.append(f"{self._other_signals} request(s) of metrics, logs or profiles were left out")
        if self._bad_utf8:
            lines = ", ".join(map(str, self._bad_utf8[:5])) + (", …" if len(self._bad_utf8) > 5 else "")
            notes.append(f"not UTF-8 on line(s) {lines}: the bad bytes are shown as \N{REPLACEMENT CHARACTER}")
        if not self.values:
            raise TraceFileError("it is empty: no trace was written to it")
        if not self.document.spans:
            raise TraceFileError("it holds no spans" + (": " + "; ".join(notes) if notes else ""))
        return self.document

    def _error(self, what: str) -> TraceFileError:
        return TraceFileError(f"line {self._line}: {what}")

    def _objects(self, parent: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
        items = parent.get(key) or []
        if not isinstance(items, list):
            raise self._error(f"'{key}' is {_kind(items)}, not a list")
        for item in items:
            if not isinstance(item, dict):
                raise self._error(f"'{key}' holds {_kind(item)}, not only objects")
            yield item

    def _object(self, parent: dict[str, Any], key: str) -> dict[str, Any]:
        value = parent.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._error(f"'{key}' is {_kind(value)}, not an object")
        return value

    def _add_resource(self, group: dict[str, Any]) -> None:
        service = self._attributes(self._object(group, "resource")).get("service.name")
        name = service if isinstance(service, str) else ""
        spans = self.document.spans
        for scope in self._objects(group, "scopeSpans"):
            spans.extend(self._span(span, name) for span in self._objects(scope, "spans"))

    def _span(self, raw: dict[str, Any], service: str) -> Span:
        status = self._object(raw, "status")
        parent = raw.get("parentSpanId")
        return Span(
            trace_id=self._id(raw, "traceId", 32),
            span_id=self._id(raw, "spanId", 16),
            parent_id="" if parent in (None, "", "0" * 16) else self._id(raw, "parentSpanId", 16),
            name=_text(raw.get("name")),
            service=service,
            start_ns=self._time(raw, "startTimeUnixNano"),
            end_ns=self._time(raw, "endTimeUnixNano"),
            attributes=self._attributes(raw),
            error=_text(status.get("message")) if status.get("code") in _STATUS_ERROR else None,
            events=tuple(map(self._event, self._objects(raw, "events"))) if raw.get("events") else (),
        )

    def _event(self, raw: dict[str, Any]) -> Event:
        return Event(_text(raw.get("name")), self._time(raw, "timeUnixNano"), self._attributes(raw))

    def _id(self, raw: dict[str, Any], key: str, digits: int) -> str:
        value = raw.get(key)
        if isinstance(value, str) and len(value) == digits:
            lower = value.lower()
            if _HEX.issuperset(lower) and lower.strip("0"):
                return sys.intern(lower)
        shown = json.dumps(value)[:60]
        raise self._error(f"'{key}' must be {digits} hex digits, not all zero, but is {shown}")

    def _time(self, raw: dict[str, Any], key: str) -> int:
        value = self._integer(raw.get(key, 0), key)
        if not 0 <= value <= _MAX_TIME:
            raise self._error(f"'{key}' is not a time in nanoseconds: {str(value)[:30]}")
        return value

    def _integer(self, value: object, key: str) -> int:
        if isinstance(value, str):
            if len(value) <= 20 and value.isascii() and value.removeprefix("-").isdigit():
                return int(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            return value
        raise self._error(f"'{key}' must be an integer, as a number or a string, but is {json.dumps(value)[:60]}")

    def _attributes(self, owner: dict[str, Any]) -> dict[str, AttributeValue]:
        found: dict[str, AttributeValue] = {}
        if not owner.get("attributes"):
            return found
        for pair in self._objects(owner, "attributes"):
            key = pair.get("key")
            if not isinstance(key, str):
                raise self._error(f"an attribute's key is {_kind(key)}, not a string")
            value = pair.get("value")
            if isinstance(value, dict) and isinstance(text := value.get("stringValue"), str):
                found[key] = text  # most are strings, and a file may hold millions
            else:
                found[key] = self._value(self._object(pair, "value"), key)
        return found

    def _value(self, raw: dict[str, Any], key: str, depth: int = 0) -> AttributeValue:
        # One key is set; a value of a kind made after this was written reads as None rather than failing the file.
        kind, value = next(iter(raw.items()), ("", None))
        if kind == "intValue":
            return self._integer(value, key)
        if kind in ("boolValue", "doubleValue") and isinstance(value, bool | int | float):
            return value
        if kind in ("arrayValue", "kvlistValue"):
            return self._values(kind, value, key, depth)
        return _text(value) if kind in ("stringValue", "bytesValue", "boolValue", "doubleValue") else None

    def _values(self, kind: str, raw: object, key: str, depth: int) -> AttributeValue:
        if depth == _MAX_NESTING:
            return "…"
        items = self._objects(raw if isinstance(raw, dict) else {}, "values")
        if kind == "arrayValue":
            return tuple(self._value(item, key, depth + 1) for item in items)
        return {_text(pair.get("key")): self._value(self._object(pair, "value"), key, depth + 1) for pair in items}


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)[:200]


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
