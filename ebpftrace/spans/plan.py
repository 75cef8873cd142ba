# SPDX-License-Identifier: Apache-2.0
"""From records to spans in Python: planned once per layout, run once per record.

The plan of a record is one `struct.Struct` over its columns, so that a record costs one unpack and a call for each
decoder whose answer is not remembered yet.
"""

from __future__ import annotations

import functools
import logging
import operator
import random
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ebpftrace.decoders import SkipRecord
from ebpftrace.spans.columns import BYTE_ORDER, TIMES, Reading, big_endian, readings
from ebpftrace.spans.model import KernelSpan
from ebpftrace.spans.protobuf import PROGRAM, UINT64_MAX

if TYPE_CHECKING:
    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.spans.clock import Clock

REASONS = ("short", "unknown_type", "no_trace_id", "skipped", "failed")
"""Why a record makes no span."""

_REMEMBERED = 256  # decoded values of one field
_FRESH_S = 1.0  # how long an answer is kept that may change
_TYPE_BYTES = 4

logger = logging.getLogger("ebpftrace.spans")

Step = tuple[int, Any, Callable[[Any], Any] | None]
"""A value's place, the value that means nothing, and what to do to another one."""
Place = tuple[int, int]
"""A record in a batch: offset, size."""


_Others = tuple[str, str | None, str, str, str, tuple[tuple[int, int], ...], tuple[tuple[str, int], ...]]
_SINGLE = ("span_name", "error", "status", "kind", "service")


class NoTraceIdError(ValueError):
    """The record has a trace id, and it is zero: what it tells of was not traced."""


class RecordStats(msgspec.Struct, frozen=True):
    """What became of a program's records.

    Args:
        records: read.
        undecoded: those that made no span, by reason (`REASONS`).
    """

    records: int = 0
    undecoded: Mapping[str, int] = {}

    @property
    def spans(self) -> int:
        """Made of the others."""
        return self.records - sum(self.undecoded.values())


class Counts:
    """Counts a program's records; its first failure is in the log, for the others the number is enough.

    Args:
        program: its name.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self.records = 0
        self.undecoded = dict.fromkeys(REASONS, 0)
        self._logged = False

    def log(self, error: Exception) -> None:
        """Say why a record failed, once."""
        if not self._logged:
            self._logged = True
            logger.warning(
                "a record of the program %r makes no span; further ones are counted: %s", self._program, error
            )

    def stats(self) -> RecordStats:
        """The counts now."""
        return RecordStats(self.records, dict(self.undecoded))


class RecordPlan:
    """How one kind of record becomes a span.

    Args:
        layout: of the record.

    Raises:
        ConfigError: decoders do not fit their columns.
    """

    def __init__(self, layout: RecordLayout) -> None:
        self.size = layout.size
        self._program = layout.program
        self._base: dict[str, Any] = {PROGRAM: layout.program, **layout.attributes}
        columns = readings(layout)
        self._unpack, places = _unpacker(columns)
        rows = [
            (reading.column.role, reading.column.key, _step(place, reading))
            for place, reading in zip(places, columns, strict=True)
        ]
        self._roles = {role: step for role, _, step in rows}
        self._head = _head(self._roles)
        self._attributes = [(key, step) for role, key, step in rows if role == ""]
        self._events = [(key, step) for role, key, step in rows if role == "event"]
        links = [step for role, _, step in rows if role.startswith("link_")]
        self._links = list(zip(links[::2], links[1::2], strict=True))
        keys = [key for key, _ in self._attributes]
        self._unique = len(set(keys)) == len(keys)
        self._defaults = (layout.name, None, "unset", layout.kind or "internal", layout.service, (), ())
        self._single = [(_SINGLE.index(role), step) for role, step in self._roles.items() if role in _SINGLE]
        self._is_plain = not (self._roles.keys() - {"", *_HEAD})

    def build(self, data: memoryview, offset: int, to_epoch: Callable[[int], int], now_ns: int) -> KernelSpan:
        """Return the span of the record at `offset`.

        Args:
            data: at least `size` bytes from `offset`.
            offset: of the record.
            to_epoch: kernel time → epoch nanoseconds.
            now_ns: when a record without a time is taken to have happened.

        Raises:
            SkipRecord: a decoder filters it out.
            NoTraceIdError: its trace id is zero.
            ColumnError: a value that its role cannot have.
        """
        values = self._unpack(data, offset)
        trace_id, span_id, parent_span_id, start, duration_ns = self._head(values)
        start_ns = now_ns if start is None else to_epoch(start)
        end_ns = start_ns + duration_ns
        if start_ns < 0 or end_ns > UINT64_MAX:
            start_ns = _within(start_ns)
            end_ns = _within(start_ns + duration_ns)
        name, error, status, kind, service, links, events = (
            self._defaults if self._is_plain else self._others(values, to_epoch)
        )
        return KernelSpan(
            trace_id,
            span_id,
            parent_span_id,
            name,
            start_ns,
            end_ns,
            self._all_attributes(values),
            self._program,
            error,
            status,
            kind,
            service,
            links,
            events,
        )

    def _others(self, values: Sequence[Any], to_epoch: Callable[[int], int]) -> _Others:
        """Return name, error, status, kind, service, links and events of a record."""
        found: list[Any] = [*self._defaults]
        for place, (index, omit, convert) in self._single:
            value = values[index]
            if value != omit:
                found[place] = (value if convert is None else convert(value)) or found[place]
        name, error, status, kind, service, links, events = found
        if self._links:
            links = self._all_links(values)
        if self._events:
            events = self._all_events(values, to_epoch)
        return name, error, status, kind, service, links, events

    def _all_attributes(self, values: Sequence[Any]) -> dict[str, Any]:
        attributes = self._base.copy()
        if not self._unique:
            return attributes | self._first_attributes(values)
        for key, (index, omit, convert) in self._attributes:
            value = values[index]
            if value == omit:
                continue
            if convert is not None:
                value = convert(value)
                if value is None:
                    continue
            attributes[key] = value
        return attributes

    def _first_attributes(self, values: Sequence[Any]) -> dict[str, Any]:
        """Of columns with the same key, the first one that has something to say."""
        attributes: dict[str, Any] = {}
        for key, step in self._attributes:
            if key not in attributes:
                value = _apply(step, values)
                if value is not None:
                    attributes[key] = value
        return attributes

    def _all_links(self, values: Sequence[Any]) -> tuple[tuple[int, int], ...]:
        found = [(_apply(trace_id, values) or 0, _apply(span_id, values) or 0) for trace_id, span_id in self._links]
        return tuple(link for link in found if all(link))

    def _all_events(self, values: Sequence[Any], to_epoch: Callable[[int], int]) -> tuple[tuple[str, int], ...]:
        found = [(name, _apply(step, values)) for name, step in self._events]
        return tuple((name, _within(to_epoch(time_ns))) for name, time_ns in found if time_ns)


def _within(time_ns: int) -> int:
    """A time as OTLP can hold it."""
    return min(max(time_ns, 0), UINT64_MAX)


def _apply(step: Step, values: Sequence[Any]) -> Any:
    """The value of a column; None = it has none."""
    index, omit, convert = step
    value = values[index]
    if value == omit:
        return None
    return value if convert is None else convert(value)


def _step(index: int, reading: Reading) -> Step:
    omit = struct.unpack(BYTE_ORDER + reading.code, reading.omit)[0] if reading.omit else None
    convert = reading.decode
    if convert is None or reading.op == "bytes" or reading.column.role in TIMES or reading.column.kind == "float":
        return index, omit, convert  # no two are the same, or comparing them is not what it seems
    return index, omit, functools.lru_cache(_REMEMBERED)(convert) if reading.lasting else _Fresh(convert)


class _Fresh:
    """Remembers answers for a second."""

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        self._convert = functools.lru_cache(_REMEMBERED)(convert)
        self._since = 0.0

    def __call__(self, value: Any) -> Any:
        now = time.monotonic()
        if now - self._since > _FRESH_S:
            self._convert.cache_clear()
            self._since = now
        return self._convert(value)


def _unpacker(columns: Sequence[Reading]) -> tuple[Callable[[memoryview, int], tuple[Any, ...]], list[int]]:
    """One unpack for all columns, and where in its result each one is; several where columns overlap."""
    fields = sorted({(reading.column.offset, reading.column.size, reading.code) for reading in columns})
    runs: list[list[tuple[int, int, str]]] = []
    for field in fields:
        for run in runs:
            if run[-1][0] + run[-1][1] <= field[0]:
                run.append(field)
                break
        else:
            runs.append([field])
    order = [field for run in runs for field in run]
    places = [order.index((reading.column.offset, reading.column.size, reading.code)) for reading in columns]
    unpacks = [struct.Struct(_format(run)).unpack_from for run in runs]
    if len(unpacks) == 1:
        return unpacks[0], places
    return (lambda data, offset: tuple(value for unpack in unpacks for value in unpack(data, offset))), places


def _format(run: Sequence[tuple[int, int, str]]) -> str:
    layout, position = BYTE_ORDER, 0
    for offset, size, code in run:
        layout += f"{offset - position}x{code}"
        position = offset + size
    return layout


# --- ids and times

Head = Callable[[Sequence[Any]], tuple[int, int, int, int | None, int]]
_HEAD = ("trace_id", "span_id", "parent_span_id", "start", "duration")

_number = int.from_bytes


# The module's own functions belong to the application: it may have seeded them, and count on what comes next
_dice = random.SystemRandom()


def _random_id(bits: int) -> int:
    return _dice.getrandbits(bits) or _random_id(bits)


def _head(roles: Mapping[Any, Step]) -> Head:
    """What reads trace id, span id, parent, start (None = unknown) and duration of a record."""
    steps = [roles.get(role) for role in _HEAD]
    if all(step is not None and step[1] is None and step[2] in (None, big_endian) for step in steps):
        return _whole_head(operator.itemgetter(*(step[0] for step in steps if step is not None)))
    return functools.partial(_any_head, steps)


def _whole_head(get: Callable[[Sequence[Any]], tuple[Any, ...]]) -> Head:
    """All five are there as they are in `struct ebt_span`."""

    def head(values: Sequence[Any]) -> tuple[int, int, int, int | None, int]:
        trace_id, span_id, parent_span_id, start, duration_ns = get(values)
        trace_number = _number(trace_id, "big")
        if not trace_number:
            raise NoTraceIdError
        span_number = _number(span_id, "big") or _random_id(64)
        return trace_number, span_number, _number(parent_span_id, "big"), start, duration_ns

    return head


def _any_head(steps: Sequence[Step | None], values: Sequence[Any]) -> tuple[int, int, int, int | None, int]:
    trace, span, parent, start, duration = steps
    if trace is not None:
        trace_id = _apply(trace, values)
        if not trace_id:
            raise NoTraceIdError
    else:
        trace_id = _random_id(128)
    span_id = (span and _apply(span, values)) or _random_id(64)
    parent_span_id = (parent and _apply(parent, values)) or 0
    if trace is None:
        parent_span_id = 0  # it would be a span of another trace
    start_ns = None if start is None else _apply(start, values)
    return trace_id, span_id, parent_span_id, start_ns, (duration and _apply(duration, values)) or 0


# --- rings


class RingPlan:
    """All kinds of records of one ring buffer.

    Args:
        layouts: of one program.
        counts: of that program; new ones by default.

    Raises:
        ConfigError: decoders do not fit their columns.
    """

    def __init__(self, layouts: Sequence[RecordLayout], counts: Counts | None = None) -> None:
        self.layouts = tuple(layouts)
        self.program = layouts[0].program
        self.counts = counts or Counts(self.program)
        plans = [RecordPlan(layout) for layout in layouts]
        self._kinds = [(layout.type, layout.type_offset, plan) for layout, plan in zip(layouts, plans, strict=True)]
        self._type = struct.Struct(BYTE_ORDER + "I").unpack_from
        # The usual case, one place for the type and several types, is one look into a dict
        offsets = {offset for _, offset, _ in self._kinds}
        typed = len(offsets) == 1 and all(number is not None for number, _, _ in self._kinds)
        self._by_type = {number: plan for number, _, plan in reversed(self._kinds)} if typed else {}
        self._type_offset = min(offsets) if typed else 0
        self._end = self._type_offset + _TYPE_BYTES if typed else 1 << 32

    def decode(self, data: memoryview, places: Iterable[Place], clock: Clock) -> list[KernelSpan]:
        """Return the spans of the records at `places`; a record that makes none is counted.

        Args:
            data: a batch.
            places: of the records in it.
            clock: for their times.
        """
        spans: list[KernelSpan] = []
        counts, to_epoch, now_ns = self.counts, clock.to_epoch, time.time_ns()
        undecoded, by_type, end = counts.undecoded, self._by_type, self._end
        for offset, size in places:
            counts.records += 1
            plan = by_type.get(self._type(data, offset + self._type_offset)[0]) if size >= end else None
            if plan is None or size < plan.size:
                other = self._plan(data, offset, size)
                if isinstance(other, str):
                    undecoded[other] += 1
                    continue
                plan = other
            try:
                spans.append(plan.build(data, offset, to_epoch, now_ns))
            except NoTraceIdError:
                undecoded["no_trace_id"] += 1
            except SkipRecord:
                undecoded["skipped"] += 1
            except Exception as error:  # noqa: BLE001  (whatever it is, the next record has nothing to do with it)
                undecoded["failed"] += 1
                counts.log(error)
        return spans

    def _plan(self, data: memoryview, offset: int, size: int) -> RecordPlan | str:
        """The plan for a record, or the reason why there is none."""
        reason = "unknown_type"
        for number, type_offset, plan in self._kinds:
            if number is not None:
                if size < type_offset + _TYPE_BYTES:
                    reason = "short"
                    continue
                if self._type(data, offset + type_offset)[0] != number:
                    continue
            return plan if size >= plan.size else "short"
        return reason
