# SPDX-License-Identifier: Apache-2.0
"""The programs that ship with ebpftrace: compiled objects and what they say of themselves."""

from __future__ import annotations

from ebpftrace.programs.catalog import CORE, ShippedProgram, find, names, program_name

__all__ = ["CORE", "ShippedProgram", "find", "names", "program_name"]
