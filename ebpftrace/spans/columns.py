# SPDX-License-Identifier: Apache-2.0
"""One column of a record: how its bytes are read and what its value becomes, the same for both ways to a span.

Whatever decoders leave behind is brought into the form that the column's role has: an int for ids and times, a word
for kinds, text for names.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ebpftrace.decoders import SkipRecord, chain
from ebpftrace.errors import ConfigError
from ebpftrace.spans.protobuf import KINDS, STATUSES, UINT64_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ebpftrace.config.layout import Column, RecordLayout
    from ebpftrace.config.model import Role
    from ebpftrace.decoders import Chain

Op = Literal["call", "uint", "sint", "bool", "float", "text", "hex", "bytes"]
"""How `_otlp` reads a column; "call": it asks Python about each distinct value."""

BYTE_ORDER = "<" if sys.byteorder == "little" else ">"

ID_BYTES: Mapping[Role, int] = {
    "trace_id": 16,
    "span_id": 8,
    "parent_span_id": 8,
    "link_trace_id": 16,
    "link_span_id": 8,
}
TIMES: frozenset[Role] = frozenset(("start", "duration", "event"))
_TEXTS: frozenset[Role] = frozenset(("span_name", "error", "service"))
# In this order columns are looked at, so both ways agree on why a record makes no span. Links and events share a
# place: the file's order counts.
_ORDER: tuple[frozenset[Role], ...] = (
    *(frozenset((role,)) for role in ("trace_id", "span_id", "parent_span_id", "start", "duration")),
    *(frozenset((role,)) for role in ("span_name", "kind", "status", "error", "service")),
    frozenset(("link_trace_id", "link_span_id")),
    frozenset(("event",)),
    frozenset(("",)),
)

_UNSIGNED = {1: "B", 2: "H", 4: "I", 8: "Q"}
_SIGNED = {1: "b", 2: "h", 4: "i", 8: "q"}
_FLOATS = {4: "f", 8: "d"}
_NATIVE: Mapping[str, Op] = {
    "uint": "uint",
    "sint": "sint",
    "bool": "bool",
    "float": "float",
    "cstring": "text",
    "hex": "hex",
}
_KIND_WORDS = {number: word for word, number in KINDS.items()}
_STATUS_WORDS = {number: word for word, number in STATUSES.items()}


class ColumnError(ValueError):
    """A field that its decoders, or its role, cannot make anything of; costs the record, and is counted."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What to do with a column.

    Args:
        column: which.
        op: how C does it.
        code: of the `struct` module, for Python.
        omit: these bytes mean that there is nothing; b"" = none do.
        decode: what that code gives → the value in the form of the role, None = nothing; None = as it is.
            Raises SkipRecord and ColumnError.
        lasting: the answer for a value stays the same.
    """

    column: Column
    op: Op
    code: str
    omit: bytes
    decode: Callable[[Any], Any] | None
    lasting: bool

    def of_bytes(self, data: bytes) -> Any:
        """Return the value of a field that has these bytes, in the form of the role; None = nothing."""
        if self.omit and data == self.omit:
            return None
        [value] = struct.unpack(BYTE_ORDER + self.code, data)
        return value if self.decode is None else self.decode(value)


def readings(layout: RecordLayout) -> list[Reading]:
    """Return what to do with each column of a layout, in the order in which to do it.

    Raises:
        ConfigError: decoders do not fit their column, or it cannot be read.
    """
    columns = [column for place in _ORDER for column in layout.columns if column.role in place]
    return [_reading(column, layout.where) for column in columns if not _is_lone_link(column, columns)]


def _is_lone_link(column: Column, columns: list[Column]) -> bool:
    """Half a link: it would be the half of the one that follows."""
    if column.role not in ("link_trace_id", "link_span_id"):
        return False
    links = [other for other in columns if other.role in ("link_trace_id", "link_span_id")]
    place = links.index(column)
    if column.role == "link_trace_id":
        return place + 1 == len(links) or links[place + 1].role != "link_span_id"
    return place == 0 or links[place - 1].role != "link_trace_id"


def _reading(column: Column, where: str) -> Reading:
    where = f"{where}: label {column.name!r}"
    try:
        found = chain(column.kind, column.size, column.decoders, names=column.names)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    op = _op(column, found)
    code = _code(column, op)
    if code is None:
        raise ConfigError(f"{where}: {column.size} bytes cannot be read as {column.kind!r}; correct its size")
    omit = _omitted_bytes(column)
    decode = _in_form(column, op, found, where)
    if column.omit is not None and omit is None:
        decode = _omitting(column, decode)
    return Reading(column, op, code, omit or b"", decode, found.lasting)


def _op(column: Column, found: Chain) -> Op:
    """What C may do by itself."""
    role = column.role
    if role in ID_BYTES:
        plain = not column.decoders or [decoder.name for decoder in column.decoders] == ["hex"]
        return "bytes" if plain and column.size == ID_BYTES[role] else "call"
    op = _NATIVE.get(found.native, "call")
    if column.omit is not None and _omitted_bytes(column) is None:
        return "call"  # the value that means nothing is not one pattern of bytes
    if role in TIMES:
        return op if op in ("uint", "sint") else "call"
    if role in _TEXTS:
        return op if op == "text" else "call"
    return op if role == "" else "call"


def _code(column: Column, op: Op) -> str | None:
    size, kind = column.size, column.kind
    if op in ("bytes", "text", "hex") or (op == "call" and kind in ("raw", "char")):
        return f"{size}s"
    if op == "uint" or (op == "call" and kind == "unsigned"):
        return _UNSIGNED.get(size)
    if op == "sint" or (op == "call" and kind == "signed"):
        return _SIGNED.get(size)
    if op == "float" or (op == "call" and kind == "float"):
        return _FLOATS.get(size)
    return "?" if size == 1 else None


# --- omitted values


def _omitted_bytes(column: Column) -> bytes | None:
    """The one pattern of bytes that is the omitted value, if there is one; b"" = no bytes are."""
    omit = column.omit
    if omit is None:
        return b""
    if isinstance(omit, str) or column.kind in ("char", "bool", "float"):
        return None
    signed = column.kind == "signed" or (column.kind == "raw" and omit < 0)
    try:
        return int(omit).to_bytes(column.size, sys.byteorder, signed=signed)
    except OverflowError:  # the field never has that value
        return b""


def _omitting(column: Column, decode: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    text = str(column.omit).encode()
    number = None if isinstance(column.omit, str) else column.omit

    def run(value: Any) -> Any:
        same = value.partition(b"\0")[0] == text if isinstance(value, bytes) else value == number
        if same:
            return None
        return value if decode is None else decode(value)

    return run


# --- the form of a role


def _in_form(column: Column, op: Op, found: Chain, where: str) -> Callable[[Any], Any] | None:
    run, role = found.run, column.role
    if op == "bytes":
        return big_endian
    if op in ("uint", "bool", "float"):
        return None
    if op == "sint":
        return _not_negative if role in TIMES else None
    if op == "hex":
        return bytes.hex
    if op == "text":
        return run
    form = _FORMS.get(role, _as_attribute)
    bits = 8 * ID_BYTES.get(role, 0)

    def decode(value: Any) -> Any:
        try:
            value = run(value)
            if value is None:
                return None
            return _as_id(value, bits) if bits else form(value)
        except SkipRecord:
            raise
        except Exception as error:
            raise ColumnError(f"{where}: {error or type(error).__name__}") from error

    return decode


def big_endian(value: bytes) -> int:
    """Return the number that an id's bytes are."""
    return int.from_bytes(value, "big")


def _not_negative(value: int) -> int:
    return max(value, 0)


def _as_id(value: Any, bits: int) -> int:
    if isinstance(value, str):
        try:
            number = int(value, 16)
        except ValueError:
            raise ValueError(f"{value!r} is no id: write it in hexadecimal digits") from None
    elif isinstance(value, bytes):
        number = int.from_bytes(value, "big")
    else:
        number = int(value)
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{value!r} has not {bits} bits, as such an id has")
    return number


def _as_time(value: Any) -> int:
    return min(max(int(value), 0), UINT64_MAX)


def as_text(value: Any) -> str:
    """Return a decoder's answer as text."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (tuple, list)):
        return " ".join(map(as_text, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _as_attribute(value: Any) -> Any:
    if isinstance(value, (str, bytes)):
        return as_text(value)
    if isinstance(value, (tuple, list)):
        return tuple(map(_as_attribute, value))
    return value


def _word(value: Any, words: Mapping[int, str], what: str) -> str:
    text = as_text(value).strip().lower()
    word = words.get(int(text), "") if text.isascii() and text.isdigit() and len(text) < 10 else text
    if word not in words.values():
        raise ValueError(f"{value!r} is no {what}; there are {', '.join(words.values())}, and their numbers")
    return word


def _as_kind(value: Any) -> str | None:
    return None if as_text(value).strip() in ("", "0") else _word(value, _KIND_WORDS, "kind of span")


def _as_status(value: Any) -> str | None:
    return None if as_text(value).strip() == "" else _word(value, _STATUS_WORDS, "status")


_FORMS: Mapping[Role, Callable[[Any], Any]] = {
    "start": _as_time,
    "duration": _as_time,
    "event": _as_time,
    "span_name": as_text,
    "error": as_text,
    "service": as_text,
    "kind": _as_kind,
    "status": _as_status,
}
