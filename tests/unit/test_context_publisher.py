# SPDX-License-Identifier: Apache-2.0
"""The publisher without a kernel: its table is ordinary shared memory."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import weakref

import pytest
from context_support import SPAN_ID, TRACE_ID, Table, context, published
from opentelemetry.context.context import Context
from opentelemetry.trace import INVALID_SPAN, SpanContext, TraceFlags
from opentelemetry.trace.propagation import _SPAN_KEY

from ebpftrace.context import _publisher


def errors():
    """Contexts that could not be published so far."""
    return _publisher.counters()["errors"]


def test_attach(runtime):
    """What is attached is in the thread's slot: ids, flags, and whose slot it is."""
    runtime.attach(context())
    slot = published()

    assert (TRACE_ID, SPAN_ID, 1, 1) == (slot.trace_id, slot.span_id, slot.valid, slot.flags)
    assert threading.get_native_id() == slot.tid


def test_byte_order(runtime):
    """Ids are in W3C byte order."""
    runtime.attach(context())

    assert bytes(range(1, 25)) == _publisher.slot_bytes()[:24]


@pytest.mark.parametrize(("trace_id", "span_id"), [((1 << 128) - 1, (1 << 64) - 1), (1, 1), (1 << 127, 1 << 63)])
def test_extreme_ids(runtime, trace_id, span_id):
    """The largest and the smallest ids are published as they are."""
    runtime.attach(context(span_id, trace_id=trace_id))

    assert (trace_id, span_id, 1) == (published().trace_id, published().span_id, published().valid)


def test_detach(runtime):
    """Detaching publishes the context before, and in the end none."""
    outer = runtime.attach(context(1))
    inner = runtime.attach(context(2))
    seen = [published().span_id]
    runtime.detach(inner)
    seen.append(published().span_id)
    runtime.detach(outer)

    assert [2, 1] == seen
    assert 0 == published().valid


@pytest.mark.parametrize(
    "nothing",
    [Context(), Context({_SPAN_KEY: INVALID_SPAN}), {}, None, "text", 7, Context({_SPAN_KEY: None})],
    ids=["empty", "invalid span", "dict", "None", "text", "number", "no span"],
)
def test_no_span(runtime, nothing):
    """A context without a valid span, or something that is no context at all, takes the one before out of the slot."""
    runtime.attach(context())
    runtime.attach(nothing)

    assert 0 == published().valid
    assert runtime.get_current() is nothing


def test_plain_dict(runtime):
    """Any dict will do as a context."""
    runtime.attach(dict(context()))

    assert SPAN_ID == published().span_id


def test_unsampled(runtime):
    """A span that is not sampled is published, but enables no program."""
    _publisher.set_default_mask(1)
    runtime.attach(context(sampled=False, mask=(7, 7, SPAN_ID)))

    assert (1, 0, 0) == (published().valid, published().flags, published().mask)


@pytest.mark.parametrize(
    ("default", "mask", "expected"),
    [
        (0, None, 0),
        (4, None, 4),
        (0, (1, 2, SPAN_ID), 3),
        (0, (1, 2, SPAN_ID + 1), 1),
        (4, (1, 2, SPAN_ID), 7),
        (4, (0, 2, 99), 4),
        (4, "no tuple", 4),
        (4, (1, 2), 4),
        (0, (1 << 31, 0, 0), 1 << 31),
    ],
)
def test_mask(runtime, default, mask, expected):
    """The mask is the default's, what is for all below, and what is for the one span when it is that span."""
    _publisher.set_default_mask(default)
    before = errors()
    runtime.attach(context(mask=mask))

    assert expected == published().mask
    assert errors() == before


def test_mask_of_no_numbers(runtime):
    """A mask of something else than numbers raises nothing; it is counted."""
    before = errors()
    runtime.attach(context(mask=("a", "b", SPAN_ID)))

    assert errors() > before


class Foreign:
    """A span of another make: only the API's method."""

    def __init__(self, result):
        self.result = result

    def get_span_context(self):
        """Return the context, or raise."""
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_foreign_span(runtime):
    """A span that is not the SDK's is asked by the API's method."""
    runtime.attach(Context({_SPAN_KEY: Foreign(SpanContext(5, 6, False, TraceFlags(1)))}))

    assert (5, 6, 1) == (published().trace_id, published().span_id, published().valid)


@pytest.mark.parametrize(
    "result",
    [
        RuntimeError("mine"),
        None,
        (1, 2),
        "text",
        (1, 2, 3, 4, 5, 6),
        ("a", 2, 3, 1, 5, True),
        (1 << 200, 1, 0, 1, 0, True),
    ],
    ids=["raises", "None", "short tuple", "text", "not valid", "no number", "too large"],
)
def test_broken_span(runtime, result):
    """A span that breaks the rules is not published, and raises nothing."""
    runtime.attach(context())
    runtime.attach(Context({_SPAN_KEY: Foreign(result)}))

    assert 0 == published().valid


def test_broken_span_is_counted(runtime):
    """A span that raises is counted."""
    before = errors()
    runtime.attach(Context({_SPAN_KEY: Foreign(RuntimeError("mine"))}))

    assert before + 1 == errors()


def test_foreign_token(runtime):
    """A token of another variable is refused as without us, and what is current stays published."""
    other = contextvars.ContextVar("other")
    runtime.attach(context())

    with pytest.raises(ValueError, match="different ContextVar"):
        runtime.detach(other.set(1))
    with pytest.raises(TypeError):
        runtime.detach("no token")
    assert (1, SPAN_ID) == (published().valid, published().span_id)


def test_token_used_twice(runtime):
    """Detaching twice fails as without us, and what is current stays published."""
    runtime.attach(context(1))
    token = runtime.attach(context(2))
    runtime.detach(token)

    with pytest.raises(RuntimeError):
        runtime.detach(token)
    assert 1 == published().span_id


def test_wrong_order(runtime):
    """Detaching in the wrong order publishes whatever is current then."""
    first = runtime.attach(context(1))
    runtime.attach(context(2))
    runtime.detach(first)

    assert 0 == published().valid
    assert runtime.get_current() == Context()


def test_no_variable_value(table):
    """A variable without a value is a LookupError for who asks, and nothing for the publisher."""
    runtime = _publisher.RuntimeContext(object(), contextvars.ContextVar("empty"))

    with pytest.raises(LookupError):
        runtime.get_current()
    runtime.publish()
    token = runtime.attach(context())
    runtime.detach(token)
    assert 0 == published().valid


class Vendor:
    """A runtime context of another make, that notes its calls."""

    def __init__(self):
        self.stack, self.calls = [Context()], []

    def attach(self, new):
        """Make it current."""
        self.calls.append("attach")
        self.stack.append(new)
        return len(self.stack)

    def detach(self, token):
        """Make the one before current."""
        self.calls.append("detach")
        if token != len(self.stack):
            raise ValueError("not this one")
        self.stack.pop()

    def get_current(self):
        """What is current."""
        return self.stack[-1]


def test_vendor_runtime_context(table):
    """Another make of runtime context is called for everything, and what it says is published."""
    vendor = Vendor()
    runtime = _publisher.RuntimeContext(vendor)
    one = context()

    token = runtime.attach(one)
    assert SPAN_ID == published().span_id
    assert runtime.get_current() is one
    with pytest.raises(ValueError, match="not this one"):
        runtime.detach(99)
    runtime.detach(token)
    assert 0 == published().valid
    assert ["attach", "detach", "detach"] == vendor.calls
    assert runtime.inner is vendor


def test_wrong_variable():
    """The variable must be one."""
    with pytest.raises(TypeError, match=r"contextvars\.ContextVar"):
        _publisher.RuntimeContext(object(), "no variable")


def test_publish(runtime):
    """publish() brings what is current into a table that came later."""
    _publisher.disarm()
    runtime.attach(context())
    other = Table()
    other.arm()
    runtime.publish()

    assert SPAN_ID == published().span_id
    _publisher.disarm()
    other.close()


def test_without_table(runtime):
    """Without a table, everything works and nothing is published."""
    _publisher.disarm()
    one = context()
    token = runtime.attach(one)

    assert runtime.get_current() is one
    assert published() is None
    assert not _publisher.armed()
    runtime.detach(token)
    _publisher.disarm()


def test_references(runtime):
    """Attaching and detaching keeps no references."""
    one = context(mask=(1, 2, SPAN_ID))
    runtime.detach(runtime.attach(one))
    before = sys.getrefcount(one), sys.getrefcount(one[_SPAN_KEY])
    for _ in range(1000):
        runtime.detach(runtime.attach(one))

    assert before == (sys.getrefcount(one), sys.getrefcount(one[_SPAN_KEY]))


def test_collectable():
    """A runtime context in a cycle is collected."""
    vendor = Vendor()
    vendor.wrapper = _publisher.RuntimeContext(vendor)
    gone = weakref.ref(vendor)
    del vendor
    gc.collect()

    assert gone() is None


def test_time_keys():
    """The attributes are named in the order of the kernel's causes."""
    causes = ["on_cpu", "run_queue", "throttled", "disk", "network", "lock", "sleep", "page_fault", "other"]

    assert tuple(f"ebpftrace.time.{cause}" for cause in causes) == _publisher.TIME_KEYS
