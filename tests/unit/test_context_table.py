# SPDX-License-Identifier: Apache-2.0
"""The publisher's table: whose slot is whose, as threads come and go and processes fork."""

from __future__ import annotations

import contextvars
import os
import sys
import threading

import pytest
from context_support import GONE, SPAN_ID, bare_fork, context, in_thread, published, stamp_now, until
from opentelemetry.trace.propagation import _SPAN_KEY

from ebpftrace.context import _publisher
from ebpftrace.context.hooks import MASK_KEY


def test_arm_twice(table):
    """A second table is refused while there is one."""
    with pytest.raises(RuntimeError, match="disarm"):
        table.arm()
    assert _publisher.armed()


def test_arm_with_a_bad_descriptor():
    """A descriptor that cannot be mapped is an OSError, and no table."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        _publisher.arm(-1, -1)
    assert not _publisher.armed()


def test_slots_of_threads(table, runtime):
    """Each thread has a slot of its own, and gives it back when it ends."""

    def work():
        runtime.attach(context(2))
        return published().tid, published().span_id, table.owners()

    runtime.attach(context(1))
    tid, span_id, owners = in_thread(work)

    assert {threading.get_native_id(), tid} == set(owners)
    assert (1, 2) == (published().span_id, span_id)
    assert until(lambda: sorted([threading.get_native_id(), GONE]) == sorted(table.owners()))


def test_generation(table, runtime):
    """A slot that is given to another thread has another generation."""

    def work():
        runtime.attach(context())
        return published()

    generations = []
    while 2 not in generations and len(generations) < 64 * _publisher.TABLE_SLOTS:
        generations.append(in_thread(work).generation)
    assert 1 == generations[0]
    assert 2 == generations[-1]


def test_full_table(table, runtime):
    """A thread that finds no slot is counted once, goes on unpublished, and harms nobody's slot."""
    table.occupy(1)
    before, content = _publisher.counters()["no_slot"], bytes(table.memory)

    def work():
        for number in range(1, 4):
            runtime.detach(runtime.attach(context(number)))
        return published()

    assert in_thread(work) is None
    assert before + 1 == _publisher.counters()["no_slot"]
    assert content == bytes(table.memory)


def test_many_threads(table, runtime):
    """Threads beyond number find slots as long as few live at a time."""
    before = _publisher.counters()["no_slot"]

    for _ in range(2 * _publisher.TABLE_SLOTS):
        in_thread(lambda: runtime.attach(context()))
    assert before == _publisher.counters()["no_slot"]
    assert until(lambda: set(table.owners()) == {GONE})


def test_thread_that_outlives_the_table(runtime):
    """A thread that ends after its table was unmapped touches nothing."""
    claimed, release = threading.Event(), threading.Event()

    def work():
        runtime.attach(context())
        claimed.set()
        release.wait()

    thread = threading.Thread(target=work)
    thread.start()
    claimed.wait()
    _publisher.disarm()
    release.set()
    thread.join()
    assert not thread.is_alive()


def test_same_slots_again(table, runtime):
    """A thread that publishes in slots that were mapped again changes what it has left there."""
    token = runtime.attach(context(9))
    assert [9] == table.fresh()
    table.rearm()
    assert [9] == table.fresh()
    assert _publisher.current() is None  # it has not looked at the new table yet
    runtime.detach(token)

    assert [] == table.fresh()


def test_better_slot_among_the_same(table, runtime):
    """A thread that takes an earlier slot when its table is mapped again leaves nothing in the one it had."""
    token = runtime.attach(context(9))
    table.move_slot()
    assert [9] == table.fresh()
    table.rearm()
    runtime.detach(token)

    assert 1 == table.owners().count(threading.get_native_id())
    assert [] == table.fresh()


def test_thread_that_ends_after_the_table_was_mapped_again(table, runtime):
    """Its slot is given back, though it never came to the new table."""

    def work():
        runtime.attach(context(9))
        table.rearm()
        return threading.get_native_id()

    tid = in_thread(work)

    assert until(lambda: tid not in table.owners())
    assert GONE in table.owners()


def test_rearm_that_fails(table, runtime):
    """A descriptor that cannot be mapped leaves the table that there was."""
    runtime.attach(context(9))
    with pytest.raises(OSError, match="Bad file descriptor"):
        _publisher.rearm(-1, -1)

    assert [9] == table.fresh()


def test_disarm_takes_back(table, runtime):
    """What is published when the publisher stops is published no more: nobody will change it."""
    token = runtime.attach(context(9))
    _publisher.disarm()
    assert [] == table.fresh()
    runtime.detach(token)
    assert threading.get_native_id() in table.owners()


def test_room_again(table, runtime):
    """A thread that found the table full, and was counted once, gets a slot when another gave its own back."""
    held, free, refused, go_on = (threading.Event() for _ in range(4))
    found = []

    def holder():
        runtime.attach(context(2))
        held.set()
        free.wait()

    def latecomer():
        runtime.attach(context(3))
        found.append(published())
        refused.set()
        go_on.wait()
        runtime.attach(context(4))
        found.append(published())

    threads = [threading.Thread(target=each) for each in (holder, latecomer)]
    before = _publisher.counters()["no_slot"]
    threads[0].start()
    held.wait()
    table.occupy(1, but=threads[0].native_id)
    threads[1].start()
    refused.wait()
    table.occupy(GONE, but=threads[0].native_id)
    free.set()
    threads[0].join()
    assert until(lambda: set(table.owners()) == {GONE})
    go_on.set()
    threads[1].join()

    assert found[0] is None
    assert 4 == found[1].span_id
    assert before + 1 == _publisher.counters()["no_slot"]


def test_stamp(runtime):
    """The stamp tells that another context took over in a way that OpenTelemetry does not see."""
    runtime.attach(context())
    slot = published()

    assert slot.stamp == stamp_now(slot.stamp_addr)
    assert slot.stamp != contextvars.copy_context().run(stamp_now, slot.stamp_addr)


def test_fork(table, runtime):
    """A forked child has no table: it writes nothing into its parent's, and tells at its first attach."""
    runtime.attach(context(1))
    before = bytes(table.memory)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _publisher.expect_fork()
            unarmed = not _publisher.armed() and _publisher.slot_bytes() is None
            runtime.attach(context(2))
            runtime.attach(context(3))
            code = 0 if unarmed and table.forks == [1] else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)

    assert 0 == status
    assert before == bytes(table.memory)
    assert [] == table.forks


def test_fork_that_nobody_was_told_of(table, runtime):
    """A child of a bare clone(2), which runs no fork handlers, writes nothing, and can have a table of its own."""
    runtime.attach(context(1))
    before = bytes(table.memory)

    def child():
        unarmed = not _publisher.armed() and _publisher.slot_bytes() is None
        runtime.attach(context(2))
        in_parents_table = before != bytes(table.memory)
        _publisher.disarm()
        table.arm()
        runtime.attach(context(3))
        assert unarmed
        assert not in_parents_table
        assert 3 == published().span_id

    assert 0 == bare_fork(child)
    assert 1 == published().span_id


def test_failing_fork_callback(runtime):
    """A callback that raises does not reach the application."""

    def fail():
        raise RuntimeError("mine")

    _publisher.configure(span_key=_SPAN_KEY, mask_key=MASK_KEY, on_fork=fail)
    _publisher.expect_fork()
    unraisable, sys.unraisablehook = [], lambda args: unraisable.append(args.exc_value)
    try:
        runtime.attach(context())
    finally:
        sys.unraisablehook = sys.__unraisablehook__

    assert ["mine"] == [str(error) for error in unraisable]
    assert SPAN_ID == published().span_id
