# SPDX-License-Identifier: Apache-2.0
"""Reading a program's YAML file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebpftrace.config import nodes, reader, rules
from ebpftrace.config.problems import ConfigProblems, Problem, Problems

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ebpftrace.config.model import ProgramConfig

logger = logging.getLogger("ebpftrace.config")


@dataclass(frozen=True, slots=True)
class Document:
    """A program's file, read.

    Args:
        source: the file's name, for messages.
        config: what it says.
        lines: of its keys ("tracing.spans[0].name"), for messages about what comes out only with the object.
        warnings: what does not keep it from being used.
    """

    source: str
    config: ProgramConfig
    lines: Mapping[str, int]
    warnings: tuple[Problem, ...] = ()


def read_document(text: str, problems: Problems, lines: dict[str, int]) -> ProgramConfig | None:
    """Return what the YAML `text` says as far as it can be understood; None when it is no document at all.

    Args:
        text: the file's content.
        problems: gets everything that is wrong.
        lines: gets the line of each key; `problems` looks at it.
    """
    try:
        root = nodes.compose(text, problems.source)
    except ConfigProblems as error:
        problems.found += error.problems
        return None
    config = reader.read(root, problems, lines)
    if problems.has(""):
        return None
    rules.check(config, problems)
    return config


def load_document(text: str, *, source: str) -> Document:
    """Return what the YAML `text` says, with the lines it says it in.

    Args:
        text: the file's content.
        source: the file's name, for messages.

    Raises:
        ConfigProblems: not YAML, or not of the format; says everything that is wrong, and where.
    """
    lines: dict[str, int] = {}
    problems = Problems(source, lines)
    config = read_document(text, problems, lines)
    if config is None or problems.found:
        raise ConfigProblems(problems.sorted())
    return Document(source, config, lines, tuple(problems.warnings))


def load_program_config(text: str, *, source: str) -> ProgramConfig:
    """Return what the YAML `text` says; what is only worth a warning is logged.

    Args:
        text: the file's content.
        source: the file's name, for messages.

    Raises:
        ConfigProblems: a `ConfigError`: not YAML, or not of the format; says everything that is wrong, and where.
    """
    document = load_document(text, source=source)
    for warning in document.warnings:
        logger.warning("%s", warning)
    return document.config
