# SPDX-License-Identifier: Apache-2.0
"""A program checked as far as that goes without loading it: both files, and whether they fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebpftrace.config.bcc_source import examine_source
from ebpftrace.config.files import read_bytes, read_text
from ebpftrace.config.load import read_document
from ebpftrace.config.problems import ConfigProblems, Problem, Problems
from ebpftrace.config.resolve import examine
from ebpftrace.errors import LoadError
from ebpftrace.kernel.object import BpfObject
from ebpftrace.programs.catalog import program_name

if TYPE_CHECKING:
    from pathlib import Path

    from ebpftrace.config.files import ProgramFiles
    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.config.model import ProgramConfig


@dataclass(frozen=True, slots=True)
class Report:
    """What was found out about one program.

    Args:
        files: of the program.
        layouts: of its records; complete only without problems, and only when there is an object.
        spans: their names, as far as the file has them.
        problems: what keeps it from being used.
        warnings: what does not.
    """

    files: ProgramFiles
    layouts: tuple[RecordLayout, ...] = ()
    spans: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def check_program(files: ProgramFiles) -> Report:
    """Check a program's files; needs no privilege."""
    lines: dict[str, int] = {}
    problems = Problems(files.yaml.name, lines)
    config, layouts = None, []
    of_code: list[Problem] = []
    try:
        config = read_document(read_text(files.yaml), problems, lines)
    except ConfigProblems as error:
        problems.found += error.problems
    try:
        if files.bcc is not None:
            source = read_text(files.bcc)
            if config is not None:
                layouts = examine_source(program_name(files.stem), config, source, problems)
        if files.object is not None:
            layouts = _check_object(files, files.object, config, problems, of_code)
    except ConfigProblems as error:
        of_code += error.problems
    spans = tuple(dict.fromkeys(each.name or each.ringbuf for each in config.tracing.spans)) if config else ()
    return Report(files, tuple(layouts), spans, (*problems.sorted(), *of_code), tuple(problems.warnings))


def _check_object(
    files: ProgramFiles, compiled: Path, config: ProgramConfig | None, problems: Problems, of_object: list[Problem]
) -> list[RecordLayout]:
    try:
        with BpfObject(files.stem, read_bytes(compiled)) as obj:
            of_object += _section_problems(compiled.name, obj)
            return examine(program_name(files.stem), config, obj, problems) if config is not None else []
    except LoadError as error:
        what = " ".join((str(error), *getattr(error, "__notes__", ())))
        mend = "compile it with `ebpftrace build`"
        of_object.append(Problem(compiled.name, 0, "", " ".join(what.split()), mend))
        return []


def _section_problems(source: str, obj: BpfObject) -> list[Problem]:
    return [
        Problem(
            source, 0, f'SEC("{function.section}")', f"libbpf knows no such section, of the function {function.name!r}",
            "name a hook, such as tp_btf/sched_switch",
        )
        for function in obj.unknown_sections()
    ]  # fmt: skip
