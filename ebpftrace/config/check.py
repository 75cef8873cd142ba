# SPDX-License-Identifier: Apache-2.0
"""A program checked as far as that goes without loading it: both files, and whether they fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebpftrace.config.files import read_bytes, read_text
from ebpftrace.config.load import read_document
from ebpftrace.config.problems import ConfigProblems, Problem, Problems
from ebpftrace.config.resolve import examine
from ebpftrace.errors import LoadError
from ebpftrace.kernel.object import BpfObject
from ebpftrace.programs.catalog import program_name

if TYPE_CHECKING:
    from ebpftrace.config.files import ProgramFiles
    from ebpftrace.config.layout import RecordLayout


@dataclass(frozen=True, slots=True)
class Report:
    """What was found out about one program.

    Args:
        files: of the program.
        layouts: of its records; complete only without problems.
        problems: what keeps it from being used.
        warnings: what does not.
    """

    files: ProgramFiles
    layouts: tuple[RecordLayout, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def check_program(files: ProgramFiles) -> Report:
    """Check a program's two files; needs no privilege."""
    lines: dict[str, int] = {}
    problems = Problems(files.yaml.name, lines)
    config, layouts = None, []
    of_object: list[Problem] = []
    try:
        config = read_document(read_text(files.yaml), problems, lines)
    except ConfigProblems as error:
        problems.found += error.problems
    try:
        with BpfObject(files.stem, read_bytes(files.object)) as obj:
            of_object = _section_problems(files.object.name, obj)
            if config is not None:
                layouts = examine(program_name(files.stem), config, obj, problems)
    except ConfigProblems as error:
        of_object += error.problems
    except LoadError as error:
        what = " ".join((str(error), *getattr(error, "__notes__", ())))
        mend = "compile it with `ebpftrace build`"
        of_object.append(Problem(files.object.name, 0, "", " ".join(what.split()), mend))
    return Report(files, tuple(layouts), (*problems.sorted(), *of_object), tuple(problems.warnings))


def _section_problems(source: str, obj: BpfObject) -> list[Problem]:
    return [
        Problem(
            source, 0, f'SEC("{function.section}")', f"libbpf knows no such section, of the function {function.name!r}",
            "name a hook, such as tp_btf/sched_switch",
        )
        for function in obj.unknown_sections()
    ]  # fmt: skip
