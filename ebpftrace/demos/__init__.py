# SPDX-License-Identifier: Apache-2.0
"""Runnable demonstrations, behind `ebpftrace demo`; part of the package so that they run from a wheel too."""

from __future__ import annotations
