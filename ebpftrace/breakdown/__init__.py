# SPDX-License-Identifier: Apache-2.0
"""The kernel time breakdown: where a span's wall time went."""

from __future__ import annotations

from ebpftrace.breakdown.processor import BreakdownProcessor

__all__ = ["BreakdownProcessor"]
