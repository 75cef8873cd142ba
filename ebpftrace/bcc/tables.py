# SPDX-License-Identifier: Apache-2.0
"""A BCC program's buffers: which there are, of which kind, and what BCC knows of their records."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ebpftrace.bcc.find import refuse_other
from ebpftrace.bcc.structs import is_record
from ebpftrace.config.problems import suggest
from ebpftrace.errors import ConfigError, EbpftraceError
from ebpftrace.kernel.maps import Map, PerfArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ebpftrace.bcc.structs import Record

logger = logging.getLogger("ebpftrace.bcc")

_KINDS: dict[int, Literal["perf", "ring"]] = {4: "perf", 27: "ring"}  # enum bpf_map_type
_read: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
"""What we read, of each BPF object."""
_OPENERS = {"perf": "open_perf_buffer", "ring": "open_ring_buffer"}


class ClosedError(EbpftraceError):
    """The BPF object was closed, and with it what it had loaded."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """One of a program's buffers.

    Args:
        name: its table's.
        table: BCC's object for it.
        kind: how records come.
    """

    name: str
    table: Any
    kind: Literal["perf", "ring"]

    @property
    def is_open(self) -> bool:
        """Does BCC read it already? It has an object for each way that the name was written, text or bytes."""
        tables = [self.table, *self.table.bpf.tables.values()]
        return any(table._cbs for table in tables if getattr(table, "map_fd", None) == self.table.map_fd)

    def map(self, pages: int) -> Map:
        """Return the buffer's map by a descriptor of our own, which outlives BCC's.

        Args:
            pages: of each CPU's part of a perf buffer; a ring buffer has its size already.
        """
        fd = os.dup(self.table.map_fd)
        if self.kind == "perf":
            return PerfArray(fd, name=self.name, pages=pages, owned=True)
        return Map(fd, name=self.name, key_size=0, value_size=0, owned=True)

    def event_class(self) -> Record | None:
        """Return the structure that BCC saw the program submit; None when it saw none, or cannot say."""
        room = ctypes.create_string_buffer(1 << 16)
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                found: Record = type(self.table.event(ctypes.addressof(room)))
        except SystemExit:  # its way to say that it does not know a field's type
            return None
        return found if ctypes.sizeof(found) else None


def require_bpf(bpf: Any) -> None:
    """Refuse what is no running `bcc.BPF`.

    Raises:
        ConfigError: it is something else.
        ClosedError: it was closed.
        UnsupportedError: another module is installed under BCC's name.
    """
    if not callable(getattr(bpf, "perf_buffer_poll", None)):
        if "bcc" in sys.modules:
            refuse_other(sys.modules["bcc"])
        raise ConfigError(f"{type(bpf).__qualname__!r} is no bcc.BPF: give the object that loaded the program")
    if is_closed(bpf):
        raise ClosedError("this BPF object is closed: read its buffers before its cleanup(), within its `with`")


def is_closed(bpf: Any) -> bool:
    """Was the program closed, by `cleanup()`, `close()` or the end of its `with`?"""
    return bpf.module is None


def find_buffer(bpf: Any, name: str) -> Buffer:
    """Return a buffer by its name in the C source.

    Raises:
        ConfigError: there is no such table, or it is of a type that has no records.
    """
    try:
        table = bpf[name]
    except KeyError:
        raise ConfigError(
            f"the BPF program has no buffer {name!r}: {suggest(name, table_names(bpf), 'its tables are')}"
        ) from None
    kind = _KINDS.get(table.ttype)
    if kind is None:
        raise ConfigError(
            f"{name!r} is a {type(table).__name__} (map type {table.ttype}), which has no records: "
            "declare it by BPF_RINGBUF_OUTPUT or BPF_PERF_OUTPUT"
        )
    return Buffer(name, table, kind)


def only_buffer(bpf: Any) -> str:
    """Return the name of the program's buffer, when it has one only.

    Raises:
        ConfigError: it has none, or several.
    """
    found = []
    for name in table_names(bpf):
        with contextlib.suppress(ConfigError):
            found.append(find_buffer(bpf, name).name)
    if len(found) == 1:
        return found[0]
    what = f"several buffers: {', '.join(found)}" if found else "no ring or perf buffer"
    raise ConfigError(f"the BPF program has {what}: name the one to read")


def table_names(bpf: Any) -> list[str]:
    """Return the names of all tables, as far as they can be asked for."""
    return sorted({*map(_text, bpf.tables), *_tables_of_module(bpf)})


def _tables_of_module(bpf: Any) -> Iterator[str]:
    # to the library, `module` is an address: only BCC's own object has one that it may follow
    own: Any = getattr(sys.modules.get("bcc"), "BPF", ())
    if not isinstance(bpf, own):
        return
    try:
        from bcc.libbcc import lib  # type: ignore[import-not-found]

        count = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)(("bpf_num_tables", lib))
        name = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)(("bpf_table_name", lib))
    except (ImportError, AttributeError):  # another release of it
        return
    for index in range(count(bpf.module)):
        yield _text(name(bpf.module, index))


def function_names(bpf: Any) -> list[str]:
    """Return the names of all functions, attached or not."""
    from bcc.libbcc import lib

    count = lib.bpf_num_functions(bpf.module)
    return [_text(lib.bpf_function_name(bpf.module, index)) for index in range(count)]


def known_structs(bpf: Any) -> dict[str, Record]:
    """Return the structs that the program's tables hold, by name, as ctypes structures."""
    found: dict[str, Record] = {}
    for name in table_names(bpf):
        try:
            held: Any = getattr(bpf[name], "Leaf", None)
        except Exception as error:  # noqa: BLE001  (BCC's own: it does not know a type)
            logger.debug("the table %r is not understood by BCC: %s", name, error)
            continue
        if is_record(held):
            found[held.__name__] = held
    return found


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def claim(bpf: Any, buffers: Iterable[Buffer]) -> None:
    """Take buffers for one reader, until `release`: there can be one only.

    Raises:
        ConfigError: one of them has another.
    """
    buffers = list(buffers)
    mine = _read.setdefault(bpf, set())
    for buffer in buffers:
        if buffer.name in mine:
            raise ConfigError(f"the buffer {buffer.name!r} is read by another reader already: close that one first")
        if buffer.is_open:
            raise ConfigError(
                f"the buffer {buffer.name!r} is read by {_OPENERS[buffer.kind]}() already: leave that out, "
                "and give its function as `callback` when you need it"
            )
    mine.update(buffer.name for buffer in buffers)


def release(bpf: Any, names: Iterable[str]) -> None:
    """Let go of buffers; idempotent."""
    _read.get(bpf, set()).difference_update(names)


def open_by_bcc(buffer: Buffer, callback: Any, lost: Any, pages: int) -> None:
    """Have BCC read a buffer, with what polls it calling `callback(cpu or context, address, size)`.

    Args:
        buffer: not open.
        callback: for each record.
        lost: gets the number of records that a perf buffer had no room for.
        pages: of each CPU's part of a perf buffer.
    """
    if buffer.kind == "perf":
        buffer.table.open_perf_buffer(callback, page_cnt=pages, lost_cb=lost)
    else:
        buffer.table.open_ring_buffer(callback)
