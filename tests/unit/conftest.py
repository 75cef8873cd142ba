# SPDX-License-Identifier: Apache-2.0
"""Fixtures of several unit tests."""

from __future__ import annotations

import pytest
from context_support import armed_table, runtime_context


@pytest.fixture
def table():
    """A table that the publisher uses."""
    with armed_table() as table:
        yield table


@pytest.fixture
def runtime(table):
    """A runtime context with a variable of its own."""
    return runtime_context()
