# SPDX-License-Identifier: Apache-2.0
"""User space → kernel: which span a thread runs now, and which programs act for it."""

from __future__ import annotations
