# SPDX-License-Identifier: Apache-2.0
"""The `ebpftrace` command: one sub-command a module."""

from __future__ import annotations
