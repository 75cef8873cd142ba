# SPDX-License-Identifier: Apache-2.0
"""What a BCC program's records are: a YAML file, a ctypes structure or what BCC knows itself, as layouts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ebpftrace.bcc.structs import CtypesTypes, Record, is_record
from ebpftrace.config import place
from ebpftrace.config.load import Document, load_document
from ebpftrace.config.model import SpanConfig
from ebpftrace.config.problems import ConfigProblems, Problems, suggest
from ebpftrace.errors import ConfigError
from ebpftrace.programs.catalog import program_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ebpftrace.bcc.tables import Buffer
    from ebpftrace.config.layout import RecordLayout

logger = logging.getLogger("ebpftrace.bcc")

PROGRAM = "bcc"
_LOADER = ("kaddrs", "knobs", "cgroup_id_map")


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a program's records before its buffers are looked at.

    Args:
        document: of the YAML file; None = there is none.
        structs: ctypes structures, by the name that the file has for them.
        only: the structure that stands without a file; None = BCC is asked.
        mend: what to do about a structure that the file names and nobody knows.
    """

    document: Document | None
    structs: Mapping[str, Record]
    only: Record | None
    mend: str = "give it: structs=[...]"

    @property
    def buffers(self) -> tuple[str, ...]:
        """The buffers that the file describes, in its order."""
        spans = self.document.config.tracing.spans if self.document else []
        return tuple(dict.fromkeys(span.ringbuf for span in spans))

    @property
    def program(self) -> str:
        """What the program is called by its file's name."""
        stem = Path(self.document.source).stem if self.document else PROGRAM
        return program_name(stem) or PROGRAM


def describe(record: object, structs: Record | Iterable[Record]) -> Description:
    """Read what the caller says of the records.

    Args:
        record: a YAML file's path, or its text; or a ctypes structure; or None.
        structs: structures that the file names.

    Raises:
        ConfigError: it is none of these, or the file is wrong.
    """
    given = by_name(structs)
    if record is None:
        return Description(None, {}, next(iter(given.values()), None))
    if is_record(record):
        return Description(None, {}, record)  # type: ignore[arg-type]
    if not isinstance(record, str | Path):
        raise ConfigError(
            f"{record!r} describes no record: give the path of a YAML file, or a class derived from ctypes.Structure"
        )
    document = _load(record)
    named = [name for name in _LOADER if getattr(document.config, name)]
    if named:
        logger.warning("%s: %s: ignored: BCC has loaded the program already", document.source, ", ".join(named))
    return Description(document, given, None)


def by_name(structs: Record | Iterable[Record]) -> dict[str, Record]:
    """Return structures by the names that a file has for them.

    Raises:
        ConfigError: one of them is something else.
    """
    given: list[Record] = [structs] if is_record(structs) else list(structs)  # type: ignore[list-item, arg-type]
    for each in given:
        if not is_record(each):
            raise ConfigError(f"structs: {each!r} is no ctypes.Structure: give the class that describes a record")
    return {each.__name__: each for each in given}


def _load(record: str | Path) -> Document:
    if isinstance(record, str) and "\n" in record:
        return load_document(record, source="bcc.yaml")
    path = Path(record)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}: give the YAML file of the program's records") from error
    document = load_document(text, source=path.name)
    for warning in document.warnings:
        logger.warning("%s", warning)
    return document


def layouts_of(description: Description, buffer: Buffer, *, program: str, name: str) -> list[RecordLayout]:
    """Return the kinds of records of one buffer.

    Args:
        description: by `describe`.
        buffer: of the program.
        program: what the spans say that they are of.
        name: of the spans; "" = the file's, else the buffer's.

    Raises:
        ConfigError: file and structure do not fit, or nothing is known of the records; says everything that is wrong.
    """
    if description.document is None:
        return [_by_struct(description.only or _known_to_bcc(buffer), buffer, program=program, name=name)]
    spans = description.document.config.tracing.spans
    mine = [index for index, span in enumerate(spans) if span.ringbuf == buffer.name]
    if not mine:
        there = suggest(buffer.name, description.buffers, "it describes")
        raise ConfigError(f"{description.document.source}: has no span with `ringbuf: {buffer.name}`: {there}")
    structs = dict(description.structs)
    if len(mine) == 1:
        if not spans[mine[0]].struct and len(description.buffers) > 1:
            structs.clear()  # which of them is this buffer's is not said
        _fill_in(structs, spans[mine[0]], buffer)
        if not spans[mine[0]].struct and len(structs) == 1:  # the labels have sizes, and must agree with it
            spans = [msgspec.structs.replace(span, struct=next(iter(structs))) for span in spans]
    problems = Problems(description.document.source, description.document.lines)
    found = [
        _layout(
            spans[index],
            f"tracing.spans[{index}]",
            structs,
            problems,
            program=program,
            name=name,
            mend=description.mend,
        )
        for index in mine
    ]
    if problems.found:
        raise ConfigProblems(problems.sorted())
    return [layout for layout in found if layout is not None]


def _fill_in(structs: dict[str, Record], span: SpanConfig, buffer: Buffer) -> None:
    """The only kind of record of a buffer is what BCC saw the program submit, whatever the file calls that."""
    if span.struct in structs or (structs and not span.struct):
        return
    seen = buffer.event_class()
    if seen is not None:
        structs[span.struct or seen.__name__ or f"of {buffer.name!r}"] = seen


def _layout(
    span: SpanConfig,
    path: str,
    structs: Mapping[str, Record],
    problems: Problems,
    *,
    program: str,
    name: str,
    mend: str,
) -> RecordLayout | None:
    types = CtypesTypes(structs)
    if span.struct and span.struct not in structs:
        there = suggest(span.struct, structs, "there are") if structs else mend
        problems.add(f"{path}.struct", f"no structure of the name {span.struct!r} is known", there)
        return None
    if name:
        span = msgspec.structs.replace(span, name=name)
    return place.layout(span, path, types, problems, program=program)


def _by_struct(struct: Record, buffer: Buffer, *, program: str, name: str) -> RecordLayout:
    called = struct.__name__ or buffer.name
    span = SpanConfig(ringbuf=buffer.name, name=name, struct=called)
    problems = Problems(called, {})
    layout = place.layout(span, "record", CtypesTypes({called: struct}), problems, program=program)
    if problems.found or layout is None:
        raise ConfigError("\n".join(f"struct {called}: {problem.what}: {problem.mend}" for problem in problems.found))
    return layout


def _known_to_bcc(buffer: Buffer) -> Record:
    seen = buffer.event_class()
    if seen is None:
        raise ConfigError(
            f"BCC cannot say what the records of {buffer.name!r} are: give a class derived from ctypes.Structure, "
            "or a YAML file"
        )
    return seen
