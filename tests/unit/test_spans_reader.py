# SPDX-License-Identifier: Apache-2.0
"""The reader's thread, without rings: changes between batches, and its end."""

from __future__ import annotations

import threading
import time

import pytest

from ebpftrace.errors import BpfError
from ebpftrace.spans.reader import Reader


@pytest.fixture
def reader():
    """A reader of nothing."""
    made = Reader({}, lambda batch, clock: None)
    yield made
    assert made.close()


def test_change(reader):
    """A change is made in the reader's thread, and is made when the call returns."""
    made = []

    assert reader.between_batches(lambda rings: made.append(threading.current_thread().name), 5.0)
    assert made == ["ebpftrace-reader"]


def test_change_that_fails(reader):
    """What a change raises is raised to whom asked for it; the thread goes on, and no batch is said to be lost."""

    def fail(rings):
        raise BpfError("read the ring buffer 'events'", errno=7)

    with pytest.raises(BpfError, match="events"):
        reader.between_batches(fail, 5.0)

    made = []
    assert reader.between_batches(made.append, 5.0)
    assert len(made) == 1
    assert (reader.alive, reader.errors) == (True, 0)


def test_change_that_comes_late(reader, caplog):
    """One that the thread does not get to in time is made later; what it raises then is logged."""
    free = threading.Event()
    holding = threading.Thread(target=lambda: reader.between_batches(lambda rings: free.wait(), 10.0))
    holding.start()

    def fail(rings):
        raise ValueError("too late")

    try:
        time.sleep(0.1)
        assert not reader.between_batches(fail, 0.1)
    finally:
        free.set()
        holding.join()
    assert reader.between_batches(lambda rings: None, 5.0)
    assert "came late" in caplog.text
    assert "too late" in caplog.text


def test_change_after_the_end(reader):
    """A reader that has ended makes no change, and says so at once."""
    reader.close()

    assert not reader.between_batches(lambda rings: None, 5.0)
