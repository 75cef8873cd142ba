# SPDX-License-Identifier: Apache-2.0
"""enable() and @traced, by the value they put into the context."""

from __future__ import annotations

import asyncio
import inspect

import opentelemetry.context as otel
import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from ebpftrace.context.enable import enable, program_mask, set_program_bits, traced
from ebpftrace.context.hooks import MASK_KEY
from ebpftrace.errors import ConfigError


@pytest.fixture(autouse=True)
def bits():
    """Two loaded programs."""
    set_program_bits({"exec": 1, "sched": 2})
    yield
    set_program_bits({})


def mask():
    """What the current context enables: (for all below, for one span, its id)."""
    return otel.get_current().get(MASK_KEY)


def current(span_id):
    """A current span with this id."""
    return use_span(NonRecordingSpan(SpanContext(1, span_id, False, TraceFlags(1))))


def test_for_one_span():
    """enable() is for the current span alone."""
    with current(7), enable("sched"):
        assert (0, 2, 7) == mask()
    assert mask() is None


def test_for_children():
    """children=True is for all below, too."""
    with current(7), enable("sched", children=True):
        assert (2, 2, 7) == mask()


def test_nested_for_the_same_span():
    """One more program for the same span adds to the first, until its block ends."""
    with current(7), enable("sched"):
        with enable("exec"):
            assert (0, 3, 7) == mask()
        assert (0, 2, 7) == mask()


def test_nested_for_another_span():
    """What was for the outer span alone is not for the inner one; what is for all below stays."""
    with current(7), enable("sched"), enable("exec", children=True), current(8), enable("sched"):
        assert (1, 2, 8) == mask()


def test_all_programs():
    """No name means all that are loaded."""
    with current(7), enable():
        assert (0, 3, 7) == mask()


def test_program_that_is_not_loaded():
    """A program that exists but is not loaded changes nothing: no context is attached."""
    set_program_bits({"exec": 1})
    before = otel.get_current()

    with current(7), enable("sched"):
        assert mask() is None
    assert otel.get_current() == before


def test_nothing_loaded():
    """Without a running library nothing is attached."""
    set_program_bits({})
    with current(7), enable():
        assert mask() is None
    assert 0 == program_mask(("sched",))


@pytest.mark.parametrize("name", ["shed", "", 7, None])
def test_wrong_name(name):
    """A program that does not exist is an error when enable() is called, not when it is entered."""
    with pytest.raises(ConfigError):
        enable(name)
    with pytest.raises(ConfigError):
        traced("sched", name)


def test_exceptions_pass():
    """An exception in the block passes, and the context is restored."""
    with pytest.raises(KeyError), current(7), enable("sched"):
        raise KeyError
    assert mask() is None


def test_used_again():
    """One enable() can be used for one block after another."""
    block = enable("sched")
    for span_id in (7, 8):
        with current(span_id), block:
            assert (0, 2, span_id) == mask()
    assert mask() is None


@pytest.mark.parametrize("children", [False, True])
def test_used_inside_itself(children):
    """One enable() may be entered again inside its own block; each end restores what was before it."""
    block = enable("sched", children=children)
    with current(7):
        with block:
            outer = mask()
            with current(8), block:
                assert 8 == mask()[2]
            assert outer == mask()
        assert mask() is None


def test_traced_function():
    """@traced enables for the call and keeps what the function is."""

    @traced("sched", children=True)
    def work(number: int) -> int:
        """Work."""
        return number + mask()[0]

    assert 5 == work(3)
    assert mask() is None
    assert ("work", "Work.") == (work.__name__, work.__doc__)
    assert ["number"] == list(inspect.signature(work).parameters)


def test_traced_coroutine():
    """A coroutine function stays one; what is enabled is so inside it."""

    @traced
    async def work():
        await asyncio.sleep(0)
        return mask()[1]

    assert inspect.iscoroutinefunction(work)
    assert 3 == asyncio.run(work())


def test_traced_generator():
    """A generator is refused, with what to do instead."""

    def generator():
        yield

    async def asynchronous():
        yield

    for function in (generator, asynchronous):
        with pytest.raises(ConfigError, match=r"ebpftrace\.enable"):
            traced(function)


def test_traced_method():
    """Methods, classes' callables and partial functions can be traced."""

    class Service:
        @traced("sched")
        def method(self):
            """Return self."""
            return self

        def __call__(self):
            """Return a number."""
            return 4

    service = Service()
    assert service.method() is service
    assert 4 == traced(service)()
