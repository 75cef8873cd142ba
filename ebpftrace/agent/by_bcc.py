# SPDX-License-Identifier: Apache-2.0
"""A program of the agent that BCC loads: where the kernel has no BTF, or there is no object."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ebpftrace.agent.cgroup_map import cgroup_map_of
from ebpftrace.agent.program import AgentProgram, Hook
from ebpftrace.config.load import load_document
from ebpftrace.programs.knobs import effective_knobs

if TYPE_CHECKING:
    from ebpftrace.agent.program import Description, Source
    from ebpftrace.agent.startup import SelfTrace
    from ebpftrace.bcc.program import BccProgram
    from ebpftrace.config.load import Document

logger = logging.getLogger("ebpftrace.agent")


def load_by_bcc(source: Source, trace: SelfTrace, reason: str) -> AgentProgram:
    """Have BCC compile, load and attach a program, whole or not at all.

    Args:
        source: which has a source for BCC.
        trace: gets what is done.
        reason: why it is BCC that loads; for the log.

    Raises:
        EbpftraceError: it cannot run here: no BCC, no headers, bad files, refused by the kernel.
    """
    from ebpftrace.bcc.program import BccProgram, BccSource

    with trace.step("read config"):
        document = _read(source)
        knobs = effective_knobs(document.config, source.overrides, source.stem)
    with trace.step("compile, load and attach by BCC"):
        loaded = BccProgram(BccSource(source.bcc_path, source.bcc, document.config, knobs))
    cgroups = None
    try:
        _, layouts = _describe(source, loaded, document)
        cgroups = cgroup_map_of(document.config, loaded, source.name)
        hooks = [Hook(function, section) for function, section in loaded.hooks().items()]
        drops = loaded.drops if loaded.counts_drops else None
        program = AgentProgram(
            source,
            document.config,
            layouts,
            loaded,
            hooks,
            describe=lambda new: _describe(new, loaded, _read(new)),
            drops=drops,
        )
    except BaseException:
        if cgroups is not None:
            cgroups.close()
        loaded.close()
        raise
    program.cgroups = cgroups
    logger.info("BCC has loaded the program %r: %s", source.stem, reason)
    return program


def _read(source: Source) -> Document:
    document = load_document(source.text, source=source.yaml.name)
    for warning in document.warnings:
        logger.warning("%s", warning)
    return document


def _describe(source: Source, loaded: BccProgram, document: Document) -> Description:
    from ebpftrace.bcc.program import describe_program

    return document.config, describe_program(loaded, document, source.name)
