# SPDX-License-Identifier: Apache-2.0
"""A session that publishes without kernel programs, as other interpreters, children and its statistics see it."""

from __future__ import annotations

import importlib.util
import logging
import threading
from types import SimpleNamespace

import pytest
from context_support import context
from otep_app import Application

from ebpftrace.context import _publisher, hooks
from ebpftrace.errors import UnsupportedError
from ebpftrace.runtime import by_agent, session
from ebpftrace.runtime.process_context import ProcessContext
from ebpftrace.settings import resolve

CHILD = """
    import ctypes, signal, time
    ebpftrace.start()
    tracer = provide(**{"service.name": "parent"})
    with tracer.start_as_current_span("parent"):
        number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
        pid = ctypes.PyDLL(None).syscall(number, int(signal.SIGCHLD), 0, 0, 0, 0)
        if pid == 0:
            WORK
            os._exit(0)
        say(os.waitpid(pid, 0)[1])
"""


@pytest.mark.parametrize(
    "work",
    [
        "ebpftrace.start()",
        'TracerProvider(resource=Resource({"service.name": "child"})).get_tracer("app")',
        "from ebpftrace.context import _publisher; _publisher.otel_withdraw()",
        "from ebpftrace.context import _publisher; assert not _publisher.otel_address()",
        'trace.get_tracer("app").start_span("in the child").end(); ebpftrace.stats(); ebpftrace.stop()',
    ],
)
def test_child_that_nobody_was_told_of(work):
    """A child of a bare clone(2), where neither the table nor the process context is, goes on as if never traced."""
    with Application(CHILD.replace("WORK", work)) as app:
        assert 0 == app.said()


def test_start_in_a_child_that_nobody_was_told_of():
    """In such a child start() publishes anew, though a provider was asked there before."""
    work = """
            TracerProvider(resource=Resource({"service.name": "child"})).get_tracer("app")
            found = ebpftrace.start().stats()["otel_context"]
            assert found["published"], found
    """
    with Application(CHILD.replace("WORK", work.strip())) as app:
        assert 0 == app.said()


def test_stats_without_programs():
    """Of what goes on without kernel programs, the counters go on, too; after stop() they are what they were last."""
    code = """
        running = ebpftrace.start(agent_socket="none")
        before = ebpftrace.stats()
        from ebpftrace.context import _publisher
        import contextvars
        tracer = provide()
        trace.get_tracer_provider()
        with tracer.start_as_current_span("work"):
            import opentelemetry.context as otel
            class Broken:
                def get_span_context(self): raise RuntimeError
            from opentelemetry.trace import set_span_in_context
            otel.detach(otel.attach(set_span_in_context(Broken())))
        after = ebpftrace.stats()
        ebpftrace.stop()
        say([before, after, running.stats()])
    """
    with Application(code) as app:
        before, after, stopped = app.said()

    assert "on" in before["context_hooks"]["hooks"].values()
    assert before["otel_context"]["published"]
    assert after["publisher"]["errors"] > before["publisher"]["errors"]
    assert (False, "", "it was stopped") == (stopped["active"], stopped["by"], stopped["reason"])
    assert not stopped["otel_context"]["published"]


SECOND = """
from ebpftrace.context import _publisher
assert _publisher.armed_elsewhere()
"""


def test_another_interpreter(table):
    """An interpreter knows that another one of its process publishes; that one itself is not another."""
    found = [name for name in ("_interpreters", "_xxsubinterpreters") if importlib.util.find_spec(name)]
    interpreters = importlib.import_module(found[0])
    make = {"_interpreters": lambda: interpreters.create("legacy")}
    second = make.get(found[0], lambda: interpreters.create(isolated=False))()
    assert not _publisher.armed_elsewhere()
    error = interpreters.run_string(second, SECOND)
    interpreters.destroy(second)

    assert error is None
    assert _publisher.armed()
    _publisher.disarm()
    assert not _publisher.armed_elsewhere()


def test_second_session(table, monkeypatch):
    """start() where another interpreter publishes says so, and leaves that one's table and hooks alone."""
    monkeypatch.setattr(_publisher, "armed_elsewhere", lambda: True)
    second = session.Session(resolve({"agent_socket": "none"}))
    with pytest.raises(UnsupportedError, match="publishes already"):
        second._bring_up()
    second._start()
    reason = second.reason
    second.stop()

    assert "publishes already" in reason
    assert _publisher.armed()


def test_agent_that_comes_back(table, runtime):
    """Slots that an agent kept keep what is published over its restart, and are changed by their threads afterwards."""
    side = by_agent.AgentSide(resolve({}), lambda bits: None, lambda: None)
    shared = SimpleNamespace(slots=table.slots_fd, lines=table.lines_fd, close=lambda: None)
    link = SimpleNamespace(welcome=SimpleNamespace(token="", programs={}), table=shared)
    token = runtime.attach(context(9))
    assert side._adopt(link)
    found = table.fresh()
    runtime.detach(token)

    assert ([9], []) == (found, table.fresh())


def test_order_of_the_end(table, monkeypatch):
    """The hooks go after the table: until then, they keep right what programs find."""
    armed = []
    monkeypatch.setattr(hooks, "uninstall", lambda: armed.append(_publisher.armed()))
    ending = session.Session(resolve({"agent_socket": "none"}))
    ending._context = ProcessContext()
    ending.stop()

    assert [False] == armed


def test_restart_at_exit(monkeypatch, caplog):
    """A first span in a forked child's exit handlers, where no thread can be started any more, is not disturbed."""

    def refuse(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    caplog.set_level(logging.DEBUG, "ebpftrace")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    session._restart_in_child()

    assert ["interpreter shutdown" in record.getMessage() for record in caplog.records] == [True]
