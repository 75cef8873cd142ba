# SPDX-License-Identifier: Apache-2.0
"""For all tests: the environment of whoever runs them must not change what they see."""

from __future__ import annotations

import os

import pytest

_OURS = ("EBPFTRACE_", "OTEL_")
_RUNNER = "EBPFTRACE_KERNEL_TESTS"  # asks for the tests themselves; see kernel/conftest.py


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No setting of ours, and none of OpenTelemetry's, leaks in."""
    for name in [name for name in os.environ if name.startswith(_OURS) and name != _RUNNER]:
        monkeypatch.delenv(name)
