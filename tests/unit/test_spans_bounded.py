# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import threading
import time

import pytest

from ebpftrace.spans.bounded import BoundedCall


@pytest.mark.parametrize(("result", "expected"), [(True, True), (None, True), (False, False)])
def test_result_is_passed_on(result, expected):
    """Only an explicit False is a failure: many exporters return nothing."""
    assert BoundedCall("t").run(lambda: result, 5) is expected


def test_call_that_takes_too_long_is_left_behind():
    """The caller gets its thread back after the timeout."""
    release = threading.Event()
    started = time.monotonic()

    in_time = BoundedCall("t").run(lambda: release.wait(30), 0.05)

    release.set()
    assert not in_time
    assert time.monotonic() - started < 5


def test_next_call_waits_for_the_one_left_behind():
    """Two calls never run at once."""
    release = threading.Event()
    calls = BoundedCall("t")
    calls.run(lambda: release.wait(30), 0.01)
    ran = []

    while_busy = calls.run(lambda: ran.append(1), 0.01)
    release.set()
    afterwards = calls.run(lambda: ran.append(2), 5)

    assert (while_busy, afterwards, ran) == (False, True, [2])


def test_exception_is_a_failure_and_logged(caplog):
    """What the call raises stays in its thread."""
    with caplog.at_level(logging.WARNING):
        succeeded = BoundedCall("t").run(lambda: 1 // 0, 5)

    assert not succeeded
    assert "ZeroDivisionError" in caplog.text
