# SPDX-License-Identifier: Apache-2.0
"""Labels with sizes, and no struct named: which struct of the object is it, and do they agree?

clang leaves record structs out of the BTF when nothing names them, so that none fits proves nothing. But one that fits
nearly shows where a size is wrong, or labels are out of order, which is worth a warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebpftrace.config.heads import HEAD_ROLES
from ebpftrace.config.structs import Place, RecordStruct

if TYPE_CHECKING:
    from ebpftrace.config.layout import Column, RecordLayout
    from ebpftrace.config.model import SpanConfig
    from ebpftrace.config.problems import Problems
    from ebpftrace.kernel.btf import Btf

_ALIGNMENT = 8  # a struct with nothing after the labels is longer by less than this
_GROWTH = 32  # members more, or fewer, that a head may have and still be taken for the same


def compare(layout: RecordLayout, span: SpanConfig, path: str, btf: Btf, problems: Problems) -> None:
    """Warn when no struct of the object fits the labels, but one fits nearly.

    Args:
        layout: of the span's record.
        span: as the file describes it.
        path: of the span in the file.
        btf: of the object.
        problems: gets the warning.
    """
    best: tuple[int, RecordStruct, str] | None = None
    for name in btf.structs():
        record = RecordStruct(btf, name)
        if not _may_be_record(record, span):
            continue
        shifted = _is_shifted(layout, record)
        fitting, why = _fitting(layout, record, by_name=shifted)
        if not why:
            return
        if (shifted or _is_near(layout, record, fitting)) and (best is None or fitting > best[0]):
            best = fitting, record, why
    if best is None:
        return
    fitting, record, why = best
    index = fitting - (len(layout.columns) - len(span.labels))  # the columns of `base` come before the labels'
    if index >= 0:
        label = span.labels[index]
        what = f"{label.name!r} disagrees with struct {record.name}, which is most like the labels: {why}"
        mend = f"correct the labels' order and sizes, or say `struct: {record.name}` if it is the record's"
        problems.warn(f"{path}.labels[{index}].size", what, mend)


def _may_be_record(record: RecordStruct, span: SpanConfig) -> bool:
    """Has it a record's head, or the labels' names? With vmlinux.h, many structs of the kernel are in the BTF too."""
    if record.head is not None:
        return True
    names = {field.name.rpartition(".")[2] for field in record.fields}
    return sum(label.name in names for label in span.labels) * 2 > len(span.labels)


def _fitting(layout: RecordLayout, record: RecordStruct, *, by_name: bool) -> tuple[int, str]:
    """How many columns agree with a struct before the first that does not, and why that one does not."""
    for count, column in enumerate(layout.columns):
        why = record.disagreement(Place(column.offset, column.size))
        if not why and by_name:
            why = _elsewhere(column, record)
        if why:
            return count, why
    return len(layout.columns), ""


def _elsewhere(column: Column, record: RecordStruct) -> str:
    """Why a column is not at the field that has its name; "" when it is, or when none has."""
    places = [field.offset for field in record.fields if field.name.rpartition(".")[2] == column.name]
    if not places or column.offset in places:
        return ""
    there = next((place for place in places if place > column.offset), places[-1])
    return f"it is at byte {column.offset}, and the field of that name at byte {there}"


def _is_shifted(layout: RecordLayout, record: RecordStruct) -> bool:
    """Do labels have fields' names and not their places? One may be so on purpose, several are out of order.

    That, or the struct has grown in the middle: a member more in a head that many records share.
    """
    apart = abs(record.size - layout.size)
    if apart >= (_GROWTH if record.head else _ALIGNMENT):
        return False
    return sum(bool(_elsewhere(column, record)) for column in layout.columns) > 1


def _is_near(layout: RecordLayout, record: RecordStruct, fitting: int) -> bool:
    """Is it likely the record's? Most agree, and more than the head, which all records have, or else the size does."""
    if fitting * 2 <= len(layout.columns):
        return False
    beyond_head = any(column.role not in HEAD_ROLES for column in layout.columns[:fitting])
    return beyond_head or abs(record.size - layout.size) < _ALIGNMENT
