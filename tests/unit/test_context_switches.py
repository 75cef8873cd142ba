# SPDX-License-Identifier: Apache-2.0
"""The hooks that tell of a switch of contexts, one by one."""

from __future__ import annotations

import contextvars
import os
import sys
import time

import opentelemetry.context as otel
import pytest
from context_support import clone, context, in_thread, published, runtime_context
from opentelemetry.context.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.trace import SpanContext, TraceFlags
from opentelemetry.trace.propagation import _SPAN_KEY
from switches_support import OF_RUN, VARIABLE, following, ids, method_place, span, truth

from ebpftrace.context import _publisher, hooks, switches, trial

OF_ANOTHER_LIBRARY = _publisher.RuntimeContext.attach
"""A method whose function is not the interpreter's."""


def holding(number):
    """A contextvars.Context that holds a span."""
    inner = contextvars.Context()
    inner.run(VARIABLE.set, context(number))
    return inner


# --- the variable itself ---------------------------------------------------------------------------------------------


def test_set_past_opentelemetry(table):
    """Whoever sets or resets the variable itself, as asgiref does, changes what is published."""
    with following() as app, span(app.runtime, 1):
        token = VARIABLE.set(context(2))
        inside = _publisher.current()
        VARIABLE.reset(token)

        assert (ids(2), ids(1)) == (inside, _publisher.current())
        VARIABLE.set(Context())
        assert _publisher.current() is None
        VARIABLE.set(context(1))


def test_set_of_another_variable(table):
    """Other variables and wrong tokens behave as without us."""
    other = contextvars.ContextVar("other")
    with following() as app, span(app.runtime, 1):
        token = other.set(5)
        assert 5 == other.get()
        with pytest.raises(ValueError, match="different ContextVar"):
            VARIABLE.reset(token)
        other.reset(token)
        with pytest.raises(TypeError):
            VARIABLE.set()
        assert ids(1) == _publisher.current()


@pytest.mark.skipif(sys.version_info < (3, 14), reason="tokens are context managers from 3.14 on")
def test_set_for_a_block(table):
    """The end of `with variable.set(value):` changes what is published, too; other variables' tokens do not."""
    other = contextvars.ContextVar("other")
    with following() as app, span(app.runtime, 1):
        with VARIABLE.set(context(2)):
            inside = _publisher.current()
        with other.set(5), pytest.raises(KeyError), VARIABLE.set(context(3)):
            raise KeyError("mine")

        assert (ids(2), ids(1)) == (inside, _publisher.current())


# --- Context.run -----------------------------------------------------------------------------------------------------


def test_run_without_hook(table):
    """Without a hook, what is published is unknown after a switch, and known again after the next attach."""
    with following() as app, span(app.runtime, 1):
        assert holding(2).run(_publisher.current) is None
        assert _publisher.current() is None
        with span(app.runtime, 3):
            assert ids(3) == _publisher.current()
        assert ids(1) == _publisher.current()


def test_run(table):
    """With the hook, another context's span is published while it runs, and the one before afterwards."""
    with following(OF_RUN) as app, span(app.runtime, 1):
        assert ids(2) == holding(2).run(_publisher.current)
        assert ids(1) == _publisher.current()
        assert contextvars.Context().run(_publisher.current) is None
        assert ids(1) == _publisher.current()


def test_nested_run(table):
    """Contexts within contexts unwind in order."""
    with following(OF_RUN) as app, span(app.runtime, 1):

        def outer():
            return [holding(3).run(_publisher.current), _publisher.current()]

        assert [ids(3), ids(2)] == holding(2).run(outer)
        assert ids(1) == _publisher.current()


def test_run_that_raises(table):
    """An exception passes through a switch as it is, and what is published is right behind it."""
    error = KeyError("mine")

    def fail():
        raise error

    with following(OF_RUN) as app, span(app.runtime, 1):
        with pytest.raises(KeyError) as caught:
            holding(2).run(fail)
        assert caught.value is error
        assert ids(1) == _publisher.current()


@pytest.mark.parametrize("off", [False, True])
def test_run_that_raises_with_a_measured_span(table, off):
    """The account of the context that is left is settled without touching the application's exception."""

    def fail():
        _publisher.begin(Measured())
        now = time.monotonic_ns()
        table.switched(on_since=now - 1000, times=(0,) * 9, off_since=now if off else 0)
        raise KeyError("mine")

    with following(OF_RUN) as app, span(app.runtime, 1), pytest.raises(KeyError, match="mine"):
        contextvars.copy_context().run(fail)


class Measured:
    """As much of an SDK's span as the breakdown needs."""

    _start_time = time.time_ns()
    _context = SpanContext(5, 6, False)


def test_fork_within_a_context_that_nobody_was_told_of(table):
    """A child of a bare clone(2) that leaves the context that it was born in writes nothing where the table was."""
    with following(OF_RUN) as app, span(app.runtime, 1):
        pid = contextvars.copy_context().run(clone)
        if pid == 0:
            os._exit(0)
        assert 0 == os.waitpid(pid, 0)[1]
        assert ids(1) == _publisher.current()


def test_arguments_of_run(table):
    """Arguments, errors and results of Context.run are what they are without us."""

    def calls():
        found = [contextvars.Context().run(lambda *args, **names: (args, names), 1, 2, key=3)]
        entered = contextvars.Context()
        for attempt in (
            lambda: contextvars.Context().run(),
            lambda: contextvars.Context.run(1, 2),
            lambda: entered.run(entered.run, int),
            lambda: contextvars.Context().run(1),
        ):
            try:
                attempt()
            except (TypeError, RuntimeError) as error:
                found.append((type(error), str(error).partition("<")[0]))
        return found

    without = calls()
    with following(OF_RUN) as app, span(app.runtime, 1):
        assert without == calls()
        assert 5 == len(without)


def test_recursion(table):
    """Contexts entered too deep end in Python's own RecursionError, and are left again in order."""

    def deeper():
        contextvars.copy_context().run(deeper)

    with following(OF_RUN) as app, span(app.runtime, 1):
        with pytest.raises(RecursionError):
            deeper()
        assert ids(1) == _publisher.current()


class Foreign:
    """A span of another make, that counts how often it is asked."""

    asked = 0

    def get_span_context(self):
        """The context."""
        Foreign.asked += 1
        return SpanContext(5, 6, False, TraceFlags(1))


class Property(Foreign):
    """One that runs Python for the attribute, too."""

    @property
    def _context(self):
        return self.get_span_context()


@pytest.mark.parametrize("make", [Foreign, Property])
def test_no_python_in_a_switch(table, make):
    """A span that would run Python code to tell its ids is asked at attach, but not in the middle of a switch."""
    with following(OF_RUN) as app:
        inner = contextvars.Context()

        def attach():
            app.runtime.attach(Context({_SPAN_KEY: make()}))
            return published().span_id

        assert 6 == inner.run(attach)
        Foreign.asked = 0
        assert inner.run(_publisher.current) is None
        assert 0 == Foreign.asked


def test_references(table):
    """A switch keeps no references."""
    with following(OF_RUN) as app, span(app.runtime, 1):
        one, inner = context(2), contextvars.Context()
        inner.run(VARIABLE.set, one)
        before = sys.getrefcount(one), sys.getrefcount(one[_SPAN_KEY]), sys.getrefcount(inner)
        for _ in range(1000):
            inner.run(int)
        assert before == (sys.getrefcount(one), sys.getrefcount(one[_SPAN_KEY]), sys.getrefcount(inner))


def test_thread_without_a_span(table):
    """A thread that runs other contexts but no span takes no slot."""
    with following(OF_RUN):
        assert in_thread(lambda: contextvars.Context().run(published)) is None
        assert in_thread(lambda: holding(2).run(_publisher.current)) == ids(2)


# --- taking them off -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="a watcher takes the place of replaced methods")
def test_methods_are_restored(table):
    """Leaving puts the interpreter's own functions back."""
    places = [method_place(method) for method in (contextvars.Context.run, contextvars.ContextVar.set)]
    before = [place.value for place in places]
    with following("run"):
        assert all(place.value != was for place, was in zip(places, before, strict=True))
    assert before == [place.value for place in places]


def test_run_replaced_before_us(table):
    """Where somebody replaced Context.run before us, that stays, and the hook says so."""
    place = method_place(contextvars.Context.run)
    before = place.value
    theirs = place.value = method_place(OF_ANOTHER_LIBRARY).value
    try:
        with following(), pytest.raises(RuntimeError, match="replaced by somebody else"):
            _publisher.hook("run")
        assert theirs == place.value
    finally:
        place.value = before


def test_run_replaced_after_us(table):
    """Where somebody replaced Context.run after us, leaving does not undo that."""
    place = method_place(contextvars.Context.run)
    before = place.value
    theirs = method_place(OF_ANOTHER_LIBRARY).value
    try:
        with following("run"):
            ours, place.value = place.value, theirs
        assert theirs == place.value
        place.value = ours  # they have gone, and called what they found
        assert 5 == contextvars.Context().run(lambda: 5)
        with following("run") as app, span(app.runtime, 1):
            assert ids(2) == holding(2).run(_publisher.current)
    finally:
        place.value = before


# --- all together ----------------------------------------------------------------------------------------------------


@pytest.fixture
def runtime_of_opentelemetry():
    """OpenTelemetry's runtime context as it was."""
    before = otel._RUNTIME_CONTEXT
    yield
    hooks.uninstall()
    otel._RUNTIME_CONTEXT = before


def test_auto(table, runtime_of_opentelemetry):
    """Left to itself, it chooses the hooks of this Python, tries them, and leaves no trace of that."""
    runtime = otel._RUNTIME_CONTEXT
    hooks.install(lambda: None)
    names = {hook.name for hook in switches.hooks() if hook.on}

    assert ({"set", "watcher", "greenlet"} if OF_RUN == "watcher" else {"set", "run", "enter", "greenlet"}) == names
    assert _publisher.current() is None
    assert Context() == otel.get_current()
    hooks.uninstall()
    assert () == switches.hooks()
    assert otel._RUNTIME_CONTEXT is runtime


@pytest.mark.parametrize("wanted", [["auto"], ["greenlet"]])
def test_started_within_a_span(table, runtime_of_opentelemetry, wanted):
    """Trying the hooks in the middle of a span leaves that span published."""
    token = otel.attach(context(1))
    hooks.install(lambda: None, wanted)

    assert not [hook for hook in switches.hooks() if hook.detail.startswith("self-test")]
    assert ids(1) == _publisher.current()
    otel.detach(token)


@pytest.mark.parametrize("wanted", ["none", "run", "greenlet"])
def test_chosen(table, runtime_of_opentelemetry, wanted):
    """The setting names the hooks that are installed."""
    hooks.install(lambda: None, [wanted])

    assert ({"set", wanted} - {"none"}) == {hook.name for hook in switches.hooks() if hook.on}


@pytest.mark.parametrize("name", [OF_RUN, "greenlet"])
def test_failed_trial(table, runtime_of_opentelemetry, monkeypatch, caplog, name):
    """A hook that does not do its work when it is tried is taken off, and that is said once."""
    pytest.importorskip("greenlet")
    monkeypatch.setattr(switches, "_told", set())
    monkeypatch.setitem(switches._TRIALS, name, lambda variable: (b"one", b"other"))
    for _ in range(2):
        hooks.install(lambda: None)
        found = {hook.name: hook for hook in switches.hooks()}
        hooks.uninstall()

    assert not found[name].on
    assert found[name].detail.startswith("self-test failed")
    assert 1 == len([record for record in caplog.records if repr(name) in record.getMessage()])


@pytest.mark.parametrize("seen", [None, b"of another span"])
def test_trial_of_eager_tasks(table, runtime_of_opentelemetry, monkeypatch, seen):
    """Where eager tasks are out of reach, the hook stays for uvloop; where it publishes a wrong span, it goes."""
    monkeypatch.setattr(switches, "_told", set())
    monkeypatch.setitem(switches._TRIALS, "enter", lambda variable: (b"one", seen))
    token = otel.attach(context(1))
    hooks.install(lambda: None, ["enter"])
    [hook] = [hook for hook in switches.hooks() if hook.name == "enter"]

    assert (seen is None) == hook.on
    assert ("eager tasks: not on this build" in hook.detail) == hook.on
    assert ids(1) == _publisher.current()
    otel.detach(token)


def test_variable_that_cannot_be_followed(table, runtime_of_opentelemetry, caplog, monkeypatch):
    """Where ContextVar.set is not followed, nothing is published: no stamp shows what is set past OpenTelemetry."""

    def fail(*args):
        raise RuntimeError("ContextVar.set was replaced by somebody else")

    monkeypatch.setattr(switches, "_told", set())
    token = otel.attach(context(1))
    runtime_context().attach(context(7))
    assert [7] == table.fresh()
    with monkeypatch.context() as patch:
        patch.setattr(_publisher, "follow", fail)
        for _ in range(2):
            hooks.install(lambda: None)
            shown = {hook.name: hook for hook in trial._wanted()}
            inside = otel.attach(context(2))
            found = table.fresh()
            otel.detach(inside)
            hooks.uninstall()
    hooks.install(lambda: None)

    assert [] == found
    assert ["set"] == list(shown)
    assert "nothing is published" in shown["set"].detail
    assert 1 == len([record for record in caplog.records if "ContextVar.set" in record.getMessage()])
    assert ids(1) == _publisher.current()
    otel.detach(token)


class Derived(ContextVarsRuntimeContext):
    """A vendor's runtime context that keeps OpenTelemetry's variable."""


def test_derived_runtime_context(table, runtime_of_opentelemetry):
    """Whoever sets a derived runtime context's variable itself makes what is published unknown, not wrong."""
    otel._RUNTIME_CONTEXT = derived = Derived()
    hooks.install(lambda: None)
    token = otel.attach(context(1))
    attached = _publisher.current()
    variable = derived._current_context
    set_itself = variable.set(context(2))
    found = [table.fresh()]
    inner = otel.attach(context(3))
    found.append(table.fresh())
    otel.detach(inner)
    variable.reset(set_itself)
    found.append(table.fresh())
    otel.detach(token)

    assert ids(1) == attached
    assert [[], [3], []] == found
    assert ["set"] == [hook.name for hook in switches.hooks() if hook.on]


class Vendor:
    """A runtime context of another make."""

    def __init__(self):
        self.contexts = [Context()]

    def attach(self, new):
        """Make it current."""
        self.contexts.append(new)
        return len(self.contexts)

    def detach(self, token):
        """Make the one before current."""
        self.contexts.pop()

    def get_current(self):
        """What is current; must not be asked in a switch."""
        return self.contexts[-1]


def test_vendor(table, runtime_of_opentelemetry):
    """A runtime context of another make is wrapped; what it attached is unknown after a switch, never wrong."""
    otel._RUNTIME_CONTEXT = Vendor()
    hooks.install(lambda: None)
    token = otel.attach(context(1))

    assert not any(hook.on for hook in switches.hooks())
    assert ids(1) == _publisher.current()
    assert contextvars.Context().run(_publisher.current) is None
    otel.detach(token)


def test_trial():
    """What `doctor` shows is tried in a table of its own, which is gone afterwards."""
    before = otel._RUNTIME_CONTEXT
    found = {hook.name: hook.on for hook in trial.hooks_that_work()}

    assert found[OF_RUN]
    assert found["greenlet"]
    assert otel._RUNTIME_CONTEXT is before
    assert not _publisher.armed()
    assert () == switches.hooks()


def test_unknown_hook(table):
    """A hook that does not exist is a ValueError; without a variable there is nothing to hook for."""
    with pytest.raises(ValueError, match="no hook 'other'"):
        _publisher.hook("other")
    with pytest.raises(RuntimeError, match="no variable"):
        _publisher.hook("run")
    with pytest.raises(TypeError, match="ContextVar"):
        _publisher.follow("no variable")


def test_truth(table):
    """The helper that the other tests compare with knows the truth."""
    with following() as app:
        assert truth() is None
        with span(app.runtime, 7):
            assert ids(7) == truth()
