# SPDX-License-Identifier: Apache-2.0
"""The columns of one kind of record: labels put where they lie, with the types of the C struct when it is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebpftrace.config.heads import HEADS, TYPE_OFFSET, HeadField
from ebpftrace.config.layout import Column, RecordLayout
from ebpftrace.config.model import LabelConfig
from ebpftrace.config.problems import suggest
from ebpftrace.config.rules import check_chain, role_of
from ebpftrace.config.structs import Place, RecordStruct, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ebpftrace.config.layout import FieldKind
    from ebpftrace.config.model import Role, SpanConfig
    from ebpftrace.config.problems import Problems
    from ebpftrace.config.structs import Types
    from ebpftrace.kernel.btf import Field, Group

PROGRAM = "ebpftrace.program"
HOOK = "ebpftrace.hook"

_ID_BYTES: Mapping[str, int] = {
    "trace_id": 16,
    "span_id": 8,
    "parent_span_id": 8,
    "link_trace_id": 16,
    "link_span_id": 8,
}
_TIMES: frozenset[Role] = frozenset({"start", "duration", "event"})
_TRUTH = {"false": 0, "true": 1}


def layout(span: SpanConfig, path: str, btf: Types, problems: Problems, *, program: str) -> RecordLayout | None:
    """Return where the fields of a span's record lie; None when the struct is not known.

    Args:
        span: as the file describes it.
        path: of the span in the file.
        btf: of the object, or what stands in for it.
        problems: gets what is wrong.
        program: the program's name.
    """
    columns: list[Column]
    if not span.struct:
        head = HEADS[span.base]
        columns = [_head_column(field) for field in head.fields]
        columns += _sized(span, path, head.size, None, problems)
        size = max((column.offset + column.size for column in columns), default=head.size)
    else:
        record = _struct(span, path, btf, problems)
        if record is None:
            return None
        columns, size = _typed_or_sized(span, path, record, problems), record.size
    name = span.name or span.ringbuf
    return RecordLayout(
        program=program,
        where=f"{problems.source}: span {name!r}",
        name=name,
        ringbuf=span.ringbuf,
        service=span.service,
        kind=span.kind,
        type=span.type,
        type_offset=TYPE_OFFSET,
        size=size,
        columns=tuple(columns),
        attributes={PROGRAM: program} | ({HOOK: span.hook} if span.hook else {}),
    )


def _struct(span: SpanConfig, path: str, btf: Types, problems: Problems) -> RecordStruct | None:
    key = f"{path}.struct"
    if not btf:
        problems.add(key, "the object has no BTF", "compile it with -g, as `ebpftrace build` does")
        return None
    try:
        record = RecordStruct(btf, span.struct)
    except KeyError:
        names = [name for name in btf.structs() if name.startswith(span.struct[:3])]
        like = suggest(span.struct, names, "").removeprefix(": ")
        keep = "clang leaves out what nothing names: keep it by EBT_RECORD() in the program"
        mend = f"{like} {keep}" if like.startswith("did") else keep
        problems.add(key, f"the object's BTF has no struct {span.struct!r}", mend)
        return None
    if span.type is not None and not (record.head and record.head.has_type):
        what = f"struct {span.struct} does not begin with struct ebt_span, which has the type"
        problems.add(f"{path}.type", what, "put `struct ebt_span` first in the struct, or leave `type` out")
    return record


def _typed_or_sized(span: SpanConfig, path: str, record: RecordStruct, problems: Problems) -> list[Column]:
    """The columns of a span that names its struct: by the names of its fields, or by sizes that must agree with it."""
    unknown = [index for index, label in enumerate(span.labels) if record.member(label.name) is None]
    if unknown and all(label.size for label in span.labels):
        own_head = any(role_of(label) in _ID_BYTES for label in span.labels)
        begin = 0 if own_head or record.head is None else record.head.size
        head = record.head.fields if begin and record.head else ()
        return [*map(_head_column, head), *_sized(span, path, begin, record, problems)]
    for index in unknown:
        name = span.labels[index].name
        mend = suggest(name, record.names(), "it has")
        problems.add(f"{path}.labels[{index}].name", f"struct {record.name} has no field {name!r}", mend)
    head = record.head.fields if record.head else ()
    columns = [_head_column(field) for field in head]
    taken = {field.role for field in head}
    for label, key, member in _members(span, path, record):
        if role_of(label) in taken and role_of(label) not in ("", "event"):
            problems.add(key, f"the struct's head has the {role_of(label)} already", "leave this label out")
            continue
        columns.append(_typed(label, key, member, problems))
    return columns


def _members(span: SpanConfig, path: str, record: RecordStruct) -> Iterable[tuple[LabelConfig, str, Field | Group]]:
    """The labels with their keys in the file and the fields they name; without labels, all fields."""
    if not span.labels:
        for field in record.attributes():
            yield LabelConfig(field.name), f"{path}.struct", field
    for index, label in enumerate(span.labels):
        member = record.member(label.name)
        if member is not None:
            yield label, f"{path}.labels[{index}]", member


def _typed(label: LabelConfig, path: str, member: Field | Group, problems: Problems) -> Column:
    """The column of a label that names a field."""
    role = role_of(label)
    kind: FieldKind = "raw" if role in _ID_BYTES else kind_of(member)
    if getattr(member, "bits", 0):
        mend = "give the record a whole field instead"
        problems.add(path, f"{label.name!r} is a bit field, which has no bytes of its own", mend)
    if label.size and label.size != member.size:
        mend = "leave the size out: it is in the object's BTF"
        problems.add(f"{path}.size", f"is {label.size}, but the size of {label.name!r} is {member.size}", mend)
    if role in _ID_BYTES and not label.decoders and member.size != _ID_BYTES[role]:
        what = f"a {role} has {_ID_BYTES[role]} bytes, and {label.name!r} has {member.size}"
        problems.add(path, what, "give another field this role")
    if role in _TIMES and not label.decoders and kind not in ("unsigned", "signed"):
        problems.add(path, f"{label.name!r} is no number, as nanoseconds are", "give another field this role")
    names = getattr(member, "names", None)
    return _column(label, path, Place(member.offset, member.size), kind, problems, names=names)


def _sized(span: SpanConfig, path: str, begin: int, record: RecordStruct | None, problems: Problems) -> list[Column]:
    """The columns of labels that follow one another."""
    columns = []
    offset = begin
    disagrees = False
    for index, label in enumerate(span.labels):
        key, place = f"{path}.labels[{index}]", Place(offset, label.size)
        disagrees = disagrees or problems.has(f"{key}.size")
        field = record.only_field(place) if record else None
        if record is not None and not disagrees and (why := record.disagreement(place)):
            mend = "correct its size, or the size or padding of the label before it"
            problems.add(f"{key}.size", f"{label.name!r} disagrees with struct {record.name}: {why}", mend)
            disagrees = True  # and so does what follows
        if field is not None and not field.count and field.size < place.size:
            place = Place(offset, field.size)  # the rest is padding, in which anything may be
        columns.append(_column(label, key, place, "raw", problems, names=field.names if field else None))
        disagrees = disagrees or problems.has(f"{key}.padding")
        offset += label.size + label.padding
    return columns


def _column(
    label: LabelConfig, path: str, place: Place, kind: FieldKind, problems: Problems, *, names: Mapping[int, str] | None
) -> Column:
    role = role_of(label)
    if not problems.has_below(f"{path}.decoders"):
        check_chain(label, path, kind, place.size, problems, names=names)
    key = label.attribute or label.name if not role else ""
    return Column(
        name=label.name,
        role=role,
        key=(label.event or label.name) if role == "event" else key,
        offset=place.offset,
        size=place.size,
        kind=kind,
        omit=_omit(label, path, kind, place.size, problems),
        decoders=tuple(label.decoders),
        names=names,
    )


def _omit(label: LabelConfig, path: str, kind: FieldKind, size: int, problems: Problems) -> int | str | None:
    """The value that means "nothing", of the type that the field has."""
    omit = label.omit
    if omit is None or kind == "raw":
        return omit
    if kind == "char":
        return str(omit)
    if isinstance(omit, str):
        if kind == "bool" and omit in _TRUTH:
            return _TRUTH[omit]
        problems.add(f"{path}.omit", f"is the text {omit!r}, but the field is a number", "give a number")
        return None
    bits = 1 if kind == "bool" else size * 8
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind == "signed" else (0, (1 << bits) - 1)
    if kind != "float" and not least <= omit <= most:
        what = f"{omit} is never the value of {label.name!r}, which goes from {least} to {most}"
        problems.add(f"{path}.omit", what, "give a value that it can have")
    return omit


def _head_column(field: HeadField) -> Column:
    return Column(field.role, field.role, "", field.offset, field.size, field.kind)
