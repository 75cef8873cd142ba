# SPDX-License-Identifier: Apache-2.0
"""Spans from BCC programs: any running `bcc.BPF`, its buffers read as records.

    import ebpftrace.bcc
    from bcc import BPF                     # or: BPF = ebpftrace.bcc.load_bcc().BPF

    bpf = BPF(text=...)
    with ebpftrace.bcc.spans(bpf, "events", "opens.yaml"):
        ...

What the records are is said by a YAML file as the agent has them, by a ctypes structure, or by BCC, which knows what
the program submits. The spans go into the application's TracerProvider, else where the OTEL_* variables say.

`ebpftrace.bcc.load("opens.yaml")` has BCC load a program that is described by a file, and reads it.
`python3 -m ebpftrace.bcc TOOL` runs one of BCC's tools as it is, and makes spans of what it prints.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebpftrace.bcc.find import load_bcc
from ebpftrace.bcc.header import cflags, has_session
from ebpftrace.bcc.layouts import by_name, describe, layouts_of
from ebpftrace.bcc.output import Output, Stamp
from ebpftrace.bcc.reader import BccReader, Program
from ebpftrace.bcc.sources import PollSource, TapSource, ThreadSource
from ebpftrace.bcc.structs import SpanHead
from ebpftrace.bcc.tables import ClosedError, claim, find_buffer, only_buffer, open_by_bcc, require_bpf
from ebpftrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ebpftrace.bcc.layouts import Description
    from ebpftrace.bcc.sources import Source
    from ebpftrace.bcc.structs import Record
    from ebpftrace.bcc.tables import Buffer
    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.kernel.maps import Map
    from ebpftrace.spans.pipeline import Pipeline

__all__ = ["BccReader", "ClosedError", "SpanHead", "cflags", "load", "load_bcc", "spans"]

PAGES = 64
"""Of each CPU's part of a perf buffer; BCC's own default is 8, which 32 KiB of records fill."""


def spans(
    bpf: Any,
    buffer: str | Iterable[str] | None = None,
    record: str | Path | Record | None = None,
    *,
    structs: Record | Iterable[Record] = (),
    name: str = "",
    program: str = "",
    stamp: Stamp = "start",
    callback: Callable[..., Any] | None = None,
    lost_callback: Callable[[int], Any] | None = None,
    thread: bool = True,
    pages: int = PAGES,
    to: Any = None,
    service_name: str = "",
) -> BccReader:
    """Make spans of what a BCC program submits, until the reader that this returns is closed.

    Args:
        bpf: a running `bcc.BPF`.
        buffer: the BPF_RINGBUF_OUTPUT or BPF_PERF_OUTPUT table to read, or several; None = all that the file
            describes, else the only one that the program has.
        record: what the records are: a YAML file's path (or its text), a class derived from ctypes.Structure, or
            None: then what BCC saw the program submit.
        structs: ctypes structures that the file names by `struct:`, or that its labels are checked against.
        name: of the spans; else the file's, else the buffer's.
        program: `ebpftrace.program` of the spans; else the file's name, else "bcc".
        stamp: "end" when the records' times are when something ended, as in many of BCC's tools.
        callback: the application's own, as it would give to `open_perf_buffer` or `open_ring_buffer`. BCC then reads,
            and the application polls BCC as it always did.
        lost_callback: with `callback`: the `lost_cb` of `open_perf_buffer`.
        thread: read in a thread of our own; False: when `poll()` is called. Not with `callback`.
        pages: of each CPU's part of a perf buffer, a power of two.
        to: an SDK TracerProvider, or a sink; None = the global provider when it is one, else the OTEL_* variables.
        service_name: `service.name` of the spans.

    Raises:
        ConfigError: something of the above is wrong, or structure and labels do not fit.
        ClosedError: the BPF object is closed.
        UnsupportedError: no exporter is installed, or what is called bcc is something else.
        BpfError: the kernel refuses to have the buffer read.
    """
    require_bpf(bpf)
    description = describe(record, structs)
    _check(stamp, pages)
    found = [find_buffer(bpf, each) for each in _names(bpf, buffer, description)]
    rings = {
        number: layouts_of(description, each, program=program or description.program, name=name)
        for number, each in enumerate(found)
    }

    def source(pipeline: Pipeline, reading: Program) -> Source:
        if callback is None:
            return _own_source(found, pipeline, reading, thread=thread, pages=pages)
        return _tap(found, pipeline, callback, lost_callback, pages)

    return _read(
        bpf, found, rings, source, output=functools.partial(Output, to, service_name=service_name), stamp=stamp
    )


def load(
    path: str | Path,
    *,
    structs: Record | Iterable[Record] = (),
    knobs: Mapping[str, bool | int | list[str]] | None = None,
    stamp: Stamp = "start",
    thread: bool = True,
    pages: int = PAGES,
    to: Any = None,
    service_name: str = "",
) -> BccReader:
    """Have BCC load the program that a YAML file describes, and make spans of its records until the reader is closed.

    The program is `NAME.bcc.c` beside `NAME.yaml`. When `ebpftrace.start()` is on in this process, its functions find
    the spans that threads run.

    Args:
        path: of the YAML file.
        structs: ctypes structures that the file names, where BCC does not know them.
        knobs: over those of the file.
        stamp: see `spans`, as for all that follow.
        thread: read in a thread of our own.
        pages: of each CPU's part of a perf buffer.
        to: an SDK TracerProvider, or a sink.
        service_name: of the spans.

    Returns:
        The reader; its `bpf` is the `bcc.BPF`. Closing it unloads the program.

    Raises:
        ConfigError: a file is missing, does not compile, or does not fit the other.
        UnsupportedError: there is no BCC, no headers of this kernel, or no exporter is installed.
        BpfError: the kernel refuses the program.
    """
    from ebpftrace.bcc.program import BccProgram, description_of, read_source

    _check(stamp, pages)
    document, source = read_source(Path(path), knobs or {})
    given = by_name(structs)
    program = BccProgram(source, context=has_session())
    with contextlib.ExitStack() as undo:
        undo.callback(program.close)
        description = description_of(program.bpf, document, given)
        found = [find_buffer(program.bpf, each) for each in description.buffers]
        rings = {
            number: layouts_of(description, each, program=description.program, name="")
            for number, each in enumerate(found)
        }
        reader = _read(
            program.bpf,
            found,
            rings,
            lambda pipeline, reading: _own_source(found, pipeline, reading, thread=thread, pages=pages),
            output=functools.partial(Output, to, service_name=service_name),
            stamp=stamp,
        )
        undo.pop_all()
    return reader.owns(program)


def _read(
    bpf: Any,
    buffers: list[Buffer],
    rings: Mapping[int, Sequence[RecordLayout]],
    source: Callable[[Pipeline, Program], Source],
    *,
    output: Callable[[], Output],
    stamp: Stamp,
) -> BccReader:
    reading = Program(bpf, [each.name for each in buffers])
    claim(bpf, buffers)
    with contextlib.ExitStack() as undo:
        undo.callback(reading.release)
        out = output()
        undo.callback(out.close)
        pipeline = out.pipeline(rings, stamp)
        reader = BccReader(reading, pipeline, out, source(pipeline, reading))
        undo.pop_all()
    return reader


def _tap(buffers: list[Buffer], pipeline: Pipeline, callback: Any, lost_callback: Any, pages: int) -> TapSource:
    source = TapSource(pipeline)
    for number, each in enumerate(buffers):
        open_by_bcc(each, source.tap(number, callback), source.tap_lost(number, lost_callback), pages)
    return source


def _own_source(
    buffers: list[Buffer], pipeline: Pipeline, program: Program, *, thread: bool, pages: int
) -> ThreadSource | PollSource:
    maps: dict[int, Map] = {}
    try:
        for number, buffer in enumerate(buffers):
            maps[number] = buffer.map(pages)
        return ThreadSource(maps, pipeline, program) if thread else PollSource(maps, pipeline)
    except BaseException:
        for each in maps.values():
            each.close()
        raise


def _names(bpf: Any, buffer: str | Iterable[str] | None, description: Description) -> list[str]:
    if buffer is None:
        return list(description.buffers) or [only_buffer(bpf)]
    names = [buffer] if isinstance(buffer, str) else list(dict.fromkeys(buffer))
    if not names:
        raise ConfigError("buffer: the list is empty: name a table of the program")
    return names


def _check(stamp: str, pages: int) -> None:
    if stamp not in ("start", "end"):
        raise ConfigError(f"stamp={stamp!r}: give 'start' or 'end'")
    if pages < 1 or pages & (pages - 1):
        raise ConfigError(f"pages={pages}: give a power of two")
