# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc

import pytest
from spans_support import kernel_span


def test_span_cannot_be_changed():
    """Sinks share spans, so none of them can change one."""
    with pytest.raises(AttributeError):
        kernel_span().name = "other"


def test_span_costs_the_garbage_collector_nothing():
    """Spans are not tracked, so a hundred thousand of them do not slow a collection down."""
    assert not gc.is_tracked(kernel_span())
