# SPDX-License-Identifier: Apache-2.0
"""What a program's file must keep to beyond its types, as far as the file alone tells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ebpftrace.config.heads import HEAD_ROLES, HEADS
from ebpftrace.config.model import RESERVED
from ebpftrace.decoders import chain
from ebpftrace.decoders.patterns import compile_pattern
from ebpftrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ebpftrace.config.layout import FieldKind
    from ebpftrace.config.model import CgroupIdMapConfig, LabelConfig, ProgramConfig, Role, SpanConfig
    from ebpftrace.config.problems import Problems

MAX_FIELD_BYTES = 1 << 16
_MAX_TYPE = (1 << 32) - 1
_MIN_KNOB, _MAX_KNOB = -(1 << 63), (1 << 64) - 1
_ID_BYTES = {"trace_id": 16, "span_id": 8, "parent_span_id": 8, "link_trace_id": 16, "link_span_id": 8}
_MANY: frozenset[Role] = frozenset({"", "event", "link_trace_id", "link_span_id"})  # roles that several labels may have
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OF_CHAIN = re.compile(r"decoder (\d+), ('.*': )")  # how `chain` begins what it says of a decoder


def role_of(label: LabelConfig) -> Role:
    """Return what a label is: its own word for it, else what its name stands for; "" = an attribute."""
    if label.role or label.attribute:
        return label.role
    return RESERVED.get(label.name, "")


def is_label_form(span: SpanConfig) -> bool:
    """Do the labels give the layout, one after the other?"""
    return not span.struct


def check(config: ProgramConfig, problems: Problems) -> None:
    """Note everything in a file that breaks a rule."""
    _check_purpose(config, problems)
    _check_rings(config.tracing.spans, problems)
    for index, span in enumerate(config.tracing.spans):
        _check_span(span, f"tracing.spans[{index}]", problems)
    for index, symbol in enumerate(config.kaddrs):
        if not _SYMBOL.fullmatch(symbol):
            problems.add(
                f"kaddrs[{index}]", f"{symbol!r} is no name of a kernel symbol", "give a name such as tcp_sendmsg"
            )
    if config.cgroup_id_map is not None:
        _check_cgroup_id_map(config.cgroup_id_map, problems)
    for name, value in config.knobs.items():
        if not isinstance(value, list) and not _MIN_KNOB <= value <= _MAX_KNOB:
            problems.add(f"knobs.{name}", f"{value} does not fit 64 bits", "give a smaller number")


def _check_purpose(config: ProgramConfig, problems: Problems) -> None:
    if config.tracing.spans:
        if config.metrics is not None:
            problems.warn("metrics", "is ignored", "metrics are for ebpf_exporter; the spans of this file are used")
    elif config.metrics is not None:
        problems.add(
            "tracing",
            "nothing to trace: this file has only metrics",
            "give it 'tracing:', or leave it to ebpf_exporter",
        )
    elif not problems.has_below("tracing"):
        problems.add("tracing.spans", "nothing to trace: there are no spans", "describe the program's records there")


def _check_rings(spans: list[SpanConfig], problems: Problems) -> None:
    """Records of one ring buffer are told apart by their type."""
    sharing: dict[str, list[int]] = {}
    for index, span in enumerate(spans):
        if span.ringbuf:
            sharing.setdefault(span.ringbuf, []).append(index)
        else:
            problems.add(f"tracing.spans[{index}].ringbuf", "is empty", "name the program's ring buffer map")
    for ringbuf, indices in sharing.items():
        if len(indices) > 1:
            _check_types(spans, indices, ringbuf, problems)


def _check_types(spans: list[SpanConfig], indices: list[int], ringbuf: str, problems: Problems) -> None:
    """Each of the spans of one ring buffer needs a type that no other has."""
    first: dict[int, int] = {}
    for index in indices:
        key, kind = f"tracing.spans[{index}].type", spans[index].type
        if kind is None:
            other = next(each for each in indices if each != index)
            what = f"is missing, and spans[{other}] comes through the ring buffer {ringbuf!r} too"
            problems.add(key, what, "give each its record's `type`, or a ring buffer of its own")
        elif first.setdefault(kind, index) != index:
            what = f"{kind} is the type of spans[{first[kind]}] too, and both come through {ringbuf!r}"
            problems.add(key, what, "give each kind of record a number of its own")


def _check_span(span: SpanConfig, path: str, problems: Problems) -> None:
    if span.type is not None:
        if not 0 <= span.type <= _MAX_TYPE:
            problems.add(f"{path}.type", f"{span.type} does not fit 32 bits", "give the record's `ebt_hdr.type`")
        if is_label_form(span) and span.base != "ebpftrace":
            mend = "name the record's `struct`, or say `base: ebpftrace` if the record begins with it"
            problems.add(f"{path}.type", "needs a record that begins with struct ebt_span", mend)
    if span.struct.startswith("struct "):
        problems.add(f"{path}.struct", f"{span.struct!r} is more than a name", "leave out the word 'struct'")
    if is_label_form(span) and not span.labels:
        mend = "name the C `struct` of the record, or list its fields as `labels`"
        problems.add(f"{path}.labels", "the record has no layout: neither labels nor struct", mend)
    for index, label in enumerate(span.labels):
        _check_label(span, label, f"{path}.labels[{index}]", problems)
    _check_roles(span, path, problems)


def _check_label(span: SpanConfig, label: LabelConfig, path: str, problems: Problems) -> None:
    if not label.name:
        problems.add(f"{path}.name", "is empty", "name the field")
    if label.attribute and label.role:
        problems.add(f"{path}.role", "there is an attribute too", "give either an attribute or a role")
    if label.event and label.role != "event":
        problems.add(f"{path}.event", "is only for the role event", "add `role: event`, or leave it out")
    _check_bytes(span, label, path, problems)
    if not is_label_form(span):
        return  # the field's type is in the object's BTF
    if not label.decoders:
        mend = "say what the bytes are: uint for a number, string for text, hex for an id"
        problems.add(f"{path}.decoders", "there are none", mend)
    elif not problems.has(f"{path}.size"):
        check_chain(label, path, "raw", label.size, problems)


def _check_bytes(span: SpanConfig, label: LabelConfig, path: str, problems: Problems) -> None:
    least = 1 if is_label_form(span) else 0
    if label.size < least:
        problems.add(f"{path}.size", f"must be {least} or more", "give the field's size in bytes")
    elif label.size > MAX_FIELD_BYTES:
        problems.add(f"{path}.size", f"must be {MAX_FIELD_BYTES} or less", "give the field's size in bytes")
    if not 0 <= label.padding <= MAX_FIELD_BYTES:
        mend = "give the bytes to skip after the field"
        problems.add(f"{path}.padding", f"must be from 0 to {MAX_FIELD_BYTES}", mend)
    if is_label_form(span) and label.decoders and label.decoders[0].name == "hex":
        size = _ID_BYTES.get(role_of(label))
        if size and label.size != size:
            what = f"must be {size}, for a {role_of(label)} has {size} bytes"
            problems.add(f"{path}.size", what, "correct it, and look at the fields before it")


def check_chain(
    label: LabelConfig,
    path: str,
    kind: FieldKind,
    size: int,
    problems: Problems,
    *,
    names: Mapping[int, str] | None = None,
) -> None:
    """Note what is wrong with a label's decoders."""
    try:
        chain(kind, size, label.decoders, names)
    except ConfigError as error:
        for line in str(error).splitlines():
            found = _OF_CHAIN.match(line)
            key = f"{path}.decoders[{int(found[1]) - 1}]" if found else f"{path}.decoders"
            problems.add(key, line[found.start(2) :] if found else line, "")


def _check_roles(span: SpanConfig, path: str, problems: Problems) -> None:
    """No role or attribute twice; links in pairs."""
    seen: dict[tuple[str, str], str] = {}
    if span.base and is_label_form(span):
        seen = {("role", field.role): f"base: {span.base}" for field in HEADS[span.base].fields}
    elif span.base:
        problems.add(f"{path}.base", "there is a struct too", "leave it out: a struct's head is found by itself")
    open_link = ""
    for index, label in enumerate(span.labels):
        role, here = role_of(label), f"{path}.labels[{index}]"
        if role not in _MANY or not role:
            what = ("role", role) if role else ("attribute", label.attribute or label.name)
            first = seen.setdefault(what, f"labels[{index}]")
            if first != f"labels[{index}]":
                mend = "keep one of them" if role else "give one of them another name"
                problems.add(here, f"{first} has the {what[0]} {what[1]!r} already", mend)
        if open_link and role != "link_span_id":
            problems.add(open_link, "no link_span_id follows it", "a link is a link_trace_id and then its link_span_id")
        if role == "link_span_id" and not open_link:
            problems.add(here, "no link_trace_id is before it", "a link is a link_trace_id and then its link_span_id")
        open_link = here if role == "link_trace_id" else ""
    if open_link:
        problems.add(open_link, "no link_span_id follows it", "a link is a link_trace_id and then its link_span_id")
    roles = {role_of(label) for label in span.labels}
    if (
        is_label_form(span)
        and not span.base
        and "trace_id" not in roles
        and roles & (HEAD_ROLES - {"start", "duration"})
    ):
        problems.warn(path, "there is no trace_id", "each span is the root of a trace of its own then")


def _check_cgroup_id_map(config: CgroupIdMapConfig, problems: Problems) -> None:
    if not config.name:
        problems.add("cgroup_id_map.name", "is empty", "name the program's map")
    if not config.regexps:
        problems.add("cgroup_id_map.regexps", "there are none", "give expressions for the paths of the cgroups")
    for index, pattern in enumerate(config.regexps):
        try:
            compile_pattern(pattern)
        except ConfigError as error:
            problems.add(f"cgroup_id_map.regexps[{index}]", str(error), "")
