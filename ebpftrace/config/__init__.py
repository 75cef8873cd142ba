# SPDX-License-Identifier: Apache-2.0
"""YAML descriptions of programs, as typed and validated values."""

from __future__ import annotations

from ebpftrace.config.load import load_program_config
from ebpftrace.config.model import DecoderConfig, LabelConfig, ProgramConfig, SpanConfig

__all__ = ["DecoderConfig", "LabelConfig", "ProgramConfig", "SpanConfig", "load_program_config"]
