# SPDX-License-Identifier: Apache-2.0
"""Kernel → user space: libbpf through cffi."""

from __future__ import annotations
