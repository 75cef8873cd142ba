# SPDX-License-Identifier: Apache-2.0
"""YAML descriptions of programs, as typed and validated values."""

from __future__ import annotations

from ebpftrace.config.load import Document, load_document, load_program_config
from ebpftrace.config.model import DecoderConfig, LabelConfig, ProgramConfig, SpanConfig
from ebpftrace.config.problems import ConfigProblems, Problem

__all__ = [
    "ConfigProblems",
    "DecoderConfig",
    "Document",
    "LabelConfig",
    "Problem",
    "ProgramConfig",
    "SpanConfig",
    "load_document",
    "load_program_config",
]
