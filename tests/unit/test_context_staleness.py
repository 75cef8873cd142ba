# SPDX-License-Identifier: Apache-2.0
"""What is published is what runs, or unknown, and never anything else: with all hooks, with some, and with none."""

from __future__ import annotations

import contextvars
import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from context_support import armed_table, context
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.context.context import Context
from switches_support import VARIABLE, Checks, following, ids, span

from ebpftrace.context import _publisher

ALL = ("watcher", "greenlet") if sys.version_info >= (3, 14) else ("run", "enter", "greenlet")
STEP = st.sampled_from(["attach", "detach", "set", "reset", "run", "return", "raise", "switch", "new"])


class Machine:
    """An application that does one thing after the other to its contexts, in greenlets that call each other."""

    def __init__(self, app, steps):
        import greenlet

        self.app, self.steps, self.checks = app, iter(steps), Checks()
        self.greenlet, self.others, self.number = greenlet, [], 0

    def next_context(self):
        """A context with a span of its own; each seventh has none."""
        self.number += 1
        return context(self.number) if self.number % 7 else Context()

    def frame(self):
        """Take steps in one context, until one of them leaves it."""
        tokens, resets = [], []
        for step in self.steps:
            if step == "attach":
                tokens.append(self.app.runtime.attach(self.next_context()))
            elif step == "detach" and tokens:
                self.app.runtime.detach(tokens.pop())
            elif step == "set":
                resets.append(VARIABLE.set(self.next_context()))
            elif step == "reset" and resets:
                VARIABLE.reset(resets.pop())
            elif step == "run":
                self.enter()
            elif step in ("new", "switch"):
                self.take_turns(new=step == "new")
            elif step == "return":
                break
            elif step == "raise":
                raise KeyError("mine")
            self.checks.look()

    def enter(self):
        """Go on in a copy of the context, or in one that is empty."""
        inner = contextvars.Context() if self.number % 3 == 0 else contextvars.copy_context()
        try:
            inner.run(self.frame)
        except KeyError:
            self.checks.look()

    def take_turns(self, *, new):
        """Go on in another greenlet, and here when that ends or gives way."""
        here = self.greenlet.getcurrent()
        alive = [one for one in self.others if not one.dead and one is not here]
        if new or not alive:
            other = self.greenlet.greenlet(self.guarded)
            other.gr_context = contextvars.copy_context()
            self.others.append(other)
        else:
            other = alive[0]
        other.switch()

    def guarded(self):
        """A greenlet's work."""
        try:
            self.frame()
        except KeyError:
            self.checks.look()


def run_steps(hooks, steps):
    """Let a machine take its steps; gives what was checked."""
    pytest.importorskip("greenlet")
    with armed_table(), following(*hooks) as app:

        def work():
            machine = Machine(app, steps)
            while True:
                machine.guarded()
                if next(machine.steps, None) is None:
                    return machine.checks

        return contextvars.Context().run(work)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_all_hooks(steps):
    """With all hooks, what is published is what runs, whatever an application does."""
    checks = run_steps(ALL, steps)

    assert (0, 0) == (checks.wrong, checks.unknown)


@settings(max_examples=100, deadline=None)
@given(st.lists(STEP, max_size=60), st.sets(st.sampled_from(ALL)))
def test_some_hooks(steps, hooks):
    """With some hooks or none, it may be unknown, but it is never wrong."""
    assert 0 == run_steps(sorted(hooks), steps).wrong


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A library that calls Python from a thread of its own."""
    source = Path(__file__).parents[1] / "data" / "native_thread.c"
    library = tmp_path_factory.mktemp("native") / "native.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-pthread", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


def test_thread_state_that_is_gone(table, native):
    """A span that a callback leaves attached is not the next callback's, whose thread state has the same address."""
    found = []

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def callback(number):
        if number == 0:
            app.runtime.attach(context(1))
        found.append((_publisher.current(), _publisher.slot_bytes() is not None))

    with following() as app:
        assert 0 == native.call_from_thread(callback, None, 3)

    assert (ids(1), True) == found[0]
    assert [(None, True), (None, True)] == found[1:]


def test_thread_state_that_is_gone_with_a_vendor(table, native):
    """The same where a runtime context of another make keeps the span, and there is no contextvars.Context."""
    found = []

    class Vendor:
        """Keeps nothing."""

        def attach(self, new):
            """Make it current."""

    runtime = _publisher.RuntimeContext(Vendor())

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def callback(number):
        if number == 0:
            runtime.attach(context(1))
        found.append(_publisher.current())

    assert 0 == native.call_from_thread(callback, None, 3)
    assert [ids(1), None, None] == found


def interpreters():
    """The module that makes interpreters, under this Python's name for it."""
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    return pytest.importorskip(name)


def test_another_interpreter(table):
    """Contexts of another interpreter of the process go their way; those of ours are published as before."""
    module = interpreters()
    code = "import contextvars\nassert contextvars.Context().run(lambda: 5) == 5\ncontextvars.ContextVar('x').set(1)"
    other = module.create()
    try:
        with following(*ALL) as app, span(app.runtime, 1):
            for _ in range(3):
                assert not module.run_string(other, code)
                assert ids(1) == _publisher.current()
    finally:
        module.destroy(other)


def test_attach_within_an_attach(table):
    """A span that attaches another while it is asked for its ids does not overwrite what that one published."""
    with following() as app:

        class Odd:
            def get_span_context(self):
                app.runtime.attach(context(2))
                return context(1)[SPAN].get_span_context()

        app.runtime.attach(Context({SPAN: Odd()}))
        assert ids(2) == _publisher.current()
        VARIABLE.set(Context())


SPAN = next(iter(context(1)))
