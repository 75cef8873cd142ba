# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, SynchronousMultiSpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ebpftrace.spans.backlog import Backlog


@pytest.fixture
def batch():
    """A batch processor that does not export by itself: its batch is as large as the test's queue is long."""
    processor = BatchSpanProcessor(
        InMemorySpanExporter(), max_queue_size=100, max_export_batch_size=60, schedule_delay_millis=60_000
    )
    yield processor
    processor.shutdown()


@pytest.mark.parametrize("multi", [SynchronousMultiSpanProcessor, ConcurrentMultiSpanProcessor])
def test_three_quarters_of_the_queue_are_room(batch, multi):
    """A quarter of the application's queue is kept for its own spans."""
    provider_processor = multi()
    provider_processor.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    provider_processor.add_span_processor(batch)
    batch._batch_processor._queue.extend(range(50))

    assert Backlog(provider_processor).room() == 25


def test_fullest_queue_decides(batch):
    """A span goes to every processor, so the one with the least room counts."""
    other = SimpleNamespace(queue=deque(range(70)), max_queue_size=100, max_export_batch_size=10)

    assert Backlog(SimpleNamespace(_span_processors=(batch, other))).room() == 5


def test_room_is_never_negative(batch):
    """The application may fill its queue beyond our share."""
    batch._batch_processor._queue.extend(range(99))

    assert Backlog(batch).room() == 0


def test_processor_of_the_older_sdk_is_understood():
    """Before it had a `_batch_processor`, the processor itself held the queue."""
    older = SimpleNamespace(queue=deque(), max_queue_size=2048, max_export_batch_size=512)

    assert Backlog(older).room() == 1536


def test_share_is_at_least_one_batch():
    """The processor only wakes up for a full batch, so that much must fit."""
    processor = SimpleNamespace(queue=deque(), max_queue_size=100, max_export_batch_size=100)

    assert Backlog(processor).room() == 100


def test_processor_without_a_queue_sets_no_limit():
    """Where there is nothing to look at, nothing is held back."""
    assert Backlog(SimpleSpanProcessor(InMemorySpanExporter())).room() is None
