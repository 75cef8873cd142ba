# SPDX-License-Identifier: Apache-2.0
"""The privileged daemon: programs described by YAML in, OTLP spans out, and what its operator needs around that."""

from __future__ import annotations
