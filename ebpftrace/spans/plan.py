# SPDX-License-Identifier: Apache-2.0
"""From records to spans: planned once per program, run once per record.

The plan of a record is one `struct.Struct` over the fields that its labels name, with offsets from the BTF of the
object that submits it, so that the C struct is the only place where a layout is written down.
"""

from __future__ import annotations

import functools
import operator
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ebpftrace.decoders import make_decoder
from ebpftrace.decoders.text import string
from ebpftrace.errors import ConfigError
from ebpftrace.spans.model import KernelSpan

if TYPE_CHECKING:
    from ebpftrace.config import LabelConfig, ProgramConfig, SpanConfig
    from ebpftrace.kernel.btf import Btf, Field
    from ebpftrace.spans.clock import Clock

PROGRAM = "ebpftrace.program"
HOOK = "ebpftrace.hook"

_BYTE_ORDER = "<" if sys.byteorder == "little" else ">"
_TYPE_OFFSET = 8  # struct ebt_hdr: u64 ts_ns, u32 type
_CODES = {("unsigned", 1): "B", ("unsigned", 2): "H", ("unsigned", 4): "I", ("unsigned", 8): "Q"}
_CODES |= {("signed", 1): "b", ("signed", 2): "h", ("signed", 4): "i", ("signed", 8): "q"}
_CODES |= {("bool", 1): "?", ("float", 4): "f", ("float", 8): "d"}
# struct ebt_span, which every record begins with
_HEAD = ("span.hdr.ts_ns", "span.trace_id", "span.parent_span_id", "span.span_id", "span.duration_ns")
_REMEMBERED = 256  # decoded values of one field

_number = int.from_bytes

Step = tuple[int, str, int | None, Callable[[Any], Any] | None]


class RecordPlan:
    """How one kind of record becomes a span.

    Args:
        program: the stem, for the span and its attributes.
        config: the span as the program's file describes it.
        btf: of the object that submits the records.

    Raises:
        ConfigError: the file and the C struct do not agree.
    """

    def __init__(self, program: str, config: SpanConfig, btf: Btf) -> None:
        where = f"{program}.yaml: span {config.name!r}"
        try:
            self.size = btf.struct_size(config.struct)
            fields = {field.name: field for field in btf.fields(config.struct)}
        except KeyError:
            raise ConfigError(
                f"{where}: {program}.bpf.o has no struct {config.struct!r}; name it in EBT_RECORD() in the program"
            ) from None
        self._program = program
        self._name = config.name
        self._base = {PROGRAM: program, HOOK: config.hook}
        self._attributes: list[Step] = []
        self._span_name: Step | None = None
        self._error: Step | None = None
        for label in config.labels:
            if label.name not in fields:
                known = ", ".join(name for name in fields if "." not in name)
                raise ConfigError(f"{where}: struct {config.struct} has no field {label.name!r}; it has {known}")
        # in the order of memory, so that one unpack gives all values without sorting them again
        wanted = sorted({*_HEAD, *(label.name for label in config.labels)}, key=lambda name: fields[name].offset)
        for label in config.labels:
            self._add(label, wanted.index(label.name), fields[label.name])
        self._head = operator.itemgetter(*map(wanted.index, _HEAD))
        self._unpack = _unpacker([fields[name] for name in wanted], where)

    def _add(self, label: LabelConfig, index: int, field: Field) -> None:
        step = (index, label.attribute, label.omit, _converter(label, field))
        if label.role == "span_name":
            self._span_name = step
        elif label.role == "error":
            self._error = step
        else:
            self._attributes.append(step)

    def build(self, data: memoryview, offset: int, to_epoch: Callable[[int], int]) -> KernelSpan:
        """Return the span of the record at `offset`."""
        values = self._unpack(data, offset)
        ts_ns, trace_id, parent_span_id, span_id, duration_ns = self._head(values)
        start_ns = to_epoch(ts_ns)
        attributes: dict[str, Any] = self._base.copy()
        for index, key, omit, convert in self._attributes:
            value = values[index]
            if value == omit:
                continue
            if convert is not None:
                value = convert(value)
                if value is None:
                    continue
            attributes[key] = value
        return KernelSpan(
            _number(trace_id, "big"),
            _number(span_id, "big"),
            _number(parent_span_id, "big"),
            (self._span_name and _step(self._span_name, values)) or self._name,
            start_ns,
            start_ns + duration_ns,
            attributes,
            self._program,
            self._error and _step(self._error, values),
        )


def _step(step: Step, values: Sequence[Any]) -> Any:
    """The value of a label with a role, or None."""
    index, _, omit, convert = step
    value = values[index]
    if value == omit:
        return None
    return convert(value) if convert is not None else value


def _converter(label: LabelConfig, field: Field) -> Callable[[Any], Any] | None:
    decoders = [make_decoder(decoder) for decoder in label.decoders]
    if not decoders:
        if field.kind != "char":
            return None
        decoders = [string]

    def chain(value: Any) -> Any:
        for decode in decoders:
            value = decode(value)
        return value

    # A decoder is a function of its value alone, and a field has few different ones: names, states, system calls
    return functools.lru_cache(_REMEMBERED)(decoders[0] if len(decoders) == 1 else chain)


def _unpacker(fields: Sequence[Field], where: str) -> Callable[[memoryview, int], tuple[Any, ...]]:
    """One unpack for all fields, which are in the order of memory."""
    layout, position = _BYTE_ORDER, 0
    for field in fields:
        code = f"{field.size}s" if field.count else _CODES.get((field.kind, field.size))
        if code is None:
            raise ConfigError(f"{where}: no attribute can be made of field {field.name!r}, a {field.kind}")
        layout += f"{field.offset - position}x{code}"
        position = field.offset + field.size
    return struct.Struct(layout).unpack_from


class ProgramPlan:
    """All records of one program.

    Args:
        program: the stem.
        config: the program's file.
        btf: of its object.

    Raises:
        ConfigError: see `RecordPlan`.
    """

    def __init__(self, program: str, config: ProgramConfig, btf: Btf) -> None:
        self.program = program
        rings = {span.ringbuf for span in config.tracing.spans}
        if len(rings) != 1:
            raise ConfigError(f"{program}.yaml: all spans of a program come through one ring buffer, not {len(rings)}")
        self.ringbuf = rings.pop()
        self._plans = {span.type: RecordPlan(program, span, btf) for span in config.tracing.spans}
        self._type = struct.Struct(_BYTE_ORDER + "I").unpack_from
        self.records = 0
        self.undecoded = 0

    def decode(self, data: memoryview, places: Iterable[tuple[int, int]], clock: Clock) -> list[KernelSpan]:
        """Return the spans of the records at `places` (offset, size); a record that no plan fits is counted."""
        spans = []
        plans, kind, to_epoch = self._plans, self._type, clock.to_epoch
        for offset, size in places:
            self.records += 1
            plan = plans.get(kind(data, offset + _TYPE_OFFSET)[0]) if size >= _TYPE_OFFSET + 4 else None
            if plan is None or size < plan.size:
                self.undecoded += 1
                continue
            spans.append(plan.build(data, offset, to_epoch))
        return spans
