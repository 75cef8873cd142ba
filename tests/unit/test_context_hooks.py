# SPDX-License-Identifier: Apache-2.0
"""How the publisher gets into OpenTelemetry, and out again."""

from __future__ import annotations

import opentelemetry.context as otel
import pytest
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext

from ebpftrace.context import _publisher, hooks


@pytest.fixture(autouse=True)
def original():
    """The runtime context as it was."""
    before = otel._RUNTIME_CONTEXT
    yield before
    otel._RUNTIME_CONTEXT = before


def test_install(original):
    """Attaching and detaching goes through us, to what was there before."""
    hooks.install(lambda: None)

    assert isinstance(otel._RUNTIME_CONTEXT, _publisher.RuntimeContext)
    assert otel._RUNTIME_CONTEXT.inner is original
    token = otel.attach(otel.set_value("key", 1))
    assert 1 == otel.get_value("key")
    otel.detach(token)
    assert otel.get_value("key") is None


def test_install_twice(original):
    """A second install() wraps nothing again."""
    hooks.install(lambda: None)
    hooks.install(lambda: None)

    assert otel._RUNTIME_CONTEXT.inner is original


def test_context_from_before(original):
    """What was attached before install() is current after it, and can be detached."""
    token = otel.attach(otel.set_value("key", 1))
    hooks.install(lambda: None)
    assert 1 == otel.get_value("key")
    otel.detach(token)
    assert otel.get_value("key") is None


def test_uninstall(original):
    """uninstall() puts back what was there, and may be called again."""
    hooks.install(lambda: None)
    token = otel.attach(otel.set_value("key", 1))
    hooks.uninstall()
    hooks.uninstall()

    assert otel._RUNTIME_CONTEXT is original
    otel.detach(token)
    assert otel.get_value("key") is None


class Wrapper(ContextVarsRuntimeContext):
    """Somebody who wraps what is there."""


def test_somebody_wraps_us():
    """When somebody wrapped us meanwhile, uninstall() leaves them alone."""
    hooks.install(lambda: None)
    wrapper = Wrapper()
    otel._RUNTIME_CONTEXT = wrapper
    hooks.uninstall()

    assert otel._RUNTIME_CONTEXT is wrapper


def test_somebody_was_there():
    """A runtime context of another class is called, never bypassed."""
    wrapper = Wrapper()
    otel._RUNTIME_CONTEXT = wrapper

    assert not hooks._context_variable(wrapper)[1]
    hooks.install(lambda: None)
    token = otel.attach(otel.set_value("key", 1))
    assert 1 == wrapper.get_current()["key"]
    otel.detach(token)
