# SPDX-License-Identifier: Apache-2.0
"""What waits to be sent: bounds, batches, and that every span is counted once."""

from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.spans.otlp.outbox import Limits, Outbox
from ebpftrace.spans.pipeline import Chunk


def chunk(size, count=1):
    """A chunk of as many bytes."""
    return Chunk("", "sched", b"x" * size, count)


def outbox(queue_bytes=1000, queue_spans=None, request_bytes=100, delay_s=60.0):
    return Outbox(Limits(queue_bytes, queue_spans, request_bytes, delay_s))


def sizes(chunks):
    return [len(chunk.payload) for chunk in chunks]


def test_a_request_is_full():
    """Chunks go together as long as they fit into a request, in their order; a larger one goes alone."""
    box = outbox()
    box.put([chunk(size) for size in (60, 40, 1, 150, 99)])
    requests = []
    for _ in range(3):
        requests.append(sizes(box.take()))
        box.settle()
    box.begin_closing(1)

    assert [[60, 40], [1], [150]] == requests
    assert [99] == sizes(box.take())


def test_the_oldest_waits_no_longer_than_told():
    """A request that does not get full leaves when its oldest span has waited for the delay."""
    box = outbox(delay_s=0.1)
    box.put([chunk(1)])
    started = time.monotonic()

    assert [1] == sizes(box.take())
    assert 0.05 < time.monotonic() - started < 2


def test_half_a_small_queue_is_enough():
    """With a limit in spans below a request's worth, half of it is sent without waiting for more."""
    box = outbox(queue_spans=10)
    box.put([chunk(1, 5)])

    assert [1] == sizes(box.take())


def test_full():
    """The chunk that does not fit is dropped and counted; what is on its way takes room until it is settled."""
    box = outbox(queue_bytes=100)
    box.put([chunk(60, 6), chunk(50, 5), chunk(40, 4)])
    box.take()
    box.put([chunk(1, 1)])
    totals, queued_bytes = box.totals()

    assert (16, 10, 100) == (totals.emitted, totals.queued, queued_bytes)
    assert {"queue_full": 6} == totals.drops
    box.settle()
    box.put([chunk(1, 1)])
    assert 6 == box.totals()[0].drops["queue_full"]


def test_one_larger_than_the_queue():
    """A chunk larger than the whole queue goes through an empty one."""
    box = outbox(queue_bytes=10, queue_spans=2)
    box.put([chunk(50, 9)])

    assert [50] == sizes(box.take())
    assert {} == box.totals()[0].drops


def test_flush_waits_for_what_was_there():
    """A flush makes a half empty request leave at once and returns when that is settled."""
    box = outbox()
    box.put([chunk(1, 3)])

    def send():
        box.take()
        time.sleep(0.05)
        box.settle()

    sender = threading.Thread(target=send)
    sender.start()

    assert box.flush(5)
    assert 3 == box.totals()[0].exported
    sender.join()


def test_flush_in_vain():
    """A flush that nobody serves is over when its time is."""
    box = outbox()
    box.put([chunk(1)])

    assert not box.flush(0.05)


def test_pause_is_cut_short():
    """A flush ends a wait between attempts, unless the server asked for the wait."""
    box = outbox()
    box.put([chunk(1)])
    before = box.hurries
    box.flush(0)
    started = time.monotonic()

    assert box.pause(30, firm=False, hurries=before)
    assert time.monotonic() - started < 5
    assert box.pause(0.1, firm=True, hurries=before)
    assert time.monotonic() - started >= 0.1


def test_pause_before_the_end():
    """While closing, a wait that the server asked for and that ends too late is not begun."""
    box = outbox()
    box.begin_closing(0.2)
    started = time.monotonic()

    assert not box.pause(30, firm=True, hurries=box.hurries)
    assert time.monotonic() - started < 0.1
    assert not box.pause(30, firm=False, hurries=box.hurries)
    assert time.monotonic() - started >= 0.2


def test_closed():
    """A closed box drops what comes, and what was left counts as dropped once, whatever its sender says later."""
    box = outbox()
    box.put([chunk(100, 2), chunk(1, 3)])
    box.take()

    assert box.begin_closing(0)
    assert not box.begin_closing(0)
    box.put([chunk(1, 4)])
    assert 5 == box.give_up()
    box.settle()
    totals, queued_bytes = box.totals()
    assert ({"closed": 9}, 9, 0, 0, 0) == (totals.drops, totals.emitted, totals.exported, totals.queued, queued_bytes)
    assert [] == box.take()


steps = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 120), st.integers(1, 9)),
    st.tuples(st.just("send"), st.sampled_from(["", "refused", "rejected", "closed"]), st.integers(0, 12)),
)


@given(st.lists(steps, max_size=40), st.integers(1, 200), st.one_of(st.none(), st.integers(1, 20)))
def test_every_span_is_counted_once(steps, queue_bytes, queue_spans):
    """Whatever is put, sent, refused and dropped: the counters add up, and the queue keeps its bounds."""
    box = outbox(queue_bytes, queue_spans, delay_s=0)
    for kind, *rest in steps:
        if kind == "put":
            box.put([chunk(*rest)])
        elif box.totals()[0].queued:
            count = sum(taken.count for taken in box.take())
            outcome, lost = rest
            whole = count if outcome in ("refused", "closed") else lost
            box.settle(lost=whole, failure=outcome, drop=outcome if outcome == "closed" else "")
        totals, queued_bytes = box.totals()
        lost = totals.failures.total() + totals.drops.total()
        assert totals.emitted == totals.exported + lost + totals.queued
        assert queued_bytes <= max(queue_bytes, 120)
        assert queue_spans is None or totals.queued <= max(queue_spans, 9)
    box.give_up()
    assert 0 == box.totals()[0].queued
