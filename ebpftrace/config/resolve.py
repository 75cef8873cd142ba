# SPDX-License-Identifier: Apache-2.0
"""A program's file and its object put together: where each label lies in the record, and how it is read.

    document = load_document(text, source="exec-trace.yaml")
    with BpfObject("exec-trace", data) as obj:
        layouts = resolve("exec", document.source, document.config, obj, lines=document.lines)

Nothing of it needs privilege: the object is opened, not loaded.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ebpftrace.config import agree, place
from ebpftrace.config.objects import check_object
from ebpftrace.config.problems import ConfigProblems, Problems

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.config.model import ProgramConfig
    from ebpftrace.kernel.object import BpfObject

logger = logging.getLogger("ebpftrace.config")


def examine(program: str, config: ProgramConfig, obj: BpfObject, problems: Problems) -> list[RecordLayout]:
    """Put a program's file and its object together; return the layouts, which are complete only without problems.

    Args:
        program: the program's name, for its spans.
        config: what its file says.
        obj: its object, opened.
        problems: gets what is wrong, and what may be; nothing about what has a problem already.
    """
    check_object(config, obj, problems)
    btf = obj.btf
    layouts = []
    for index, span in enumerate(config.tracing.spans):
        path = f"tracing.spans[{index}]"
        layout = place.layout(span, path, btf, problems, program=program)
        if layout is not None:
            layouts.append(layout)
            if not span.struct and not problems.has_below(path):
                agree.compare(layout, span, path, btf, problems)
    return layouts


def resolve(
    program: str, source: str, config: ProgramConfig, obj: BpfObject, *, lines: Mapping[str, int] | None = None
) -> list[RecordLayout]:
    """Return the layouts of a program's records; what is only worth a warning is logged.

    Args:
        program: the program's name, for its spans.
        source: the file's name, for messages.
        config: what it says.
        obj: the program's object, opened.
        lines: of the file's keys (`Document.lines`), for messages.

    Raises:
        ConfigProblems: a `ConfigError`: the file and the object do not fit; says everything that is wrong.
    """
    problems = Problems(source, lines or {})
    layouts = examine(program, config, obj, problems)
    for warning in problems.warnings:
        logger.warning("%s", warning)
    if problems.found:
        raise ConfigProblems(problems.sorted())
    return layouts
