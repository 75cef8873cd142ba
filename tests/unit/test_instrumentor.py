# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from importlib.metadata import entry_points

import pytest

import ebpftrace
from ebpftrace.errors import ConfigError

pytest.importorskip("opentelemetry.instrumentation.instrumentor", reason="opentelemetry-instrumentation is not there")


@pytest.fixture
def calls(monkeypatch):
    """What the instrumentor has the library do."""
    found = []
    monkeypatch.setattr(ebpftrace, "start", lambda **given: found.append(("start", given)))
    monkeypatch.setattr(ebpftrace, "stop", lambda: found.append(("stop", {})))
    return found


@pytest.fixture
def instrumentor():
    """The one that the entry point names; fresh, for there is one a process."""
    [entry] = entry_points(group="opentelemetry_instrumentor", name="ebpftrace")
    found = entry.load()()
    yield found
    type(found)._instance = None


def test_start_and_stop(calls, instrumentor):
    """It starts the library with the settings among its arguments, once, and stops it."""
    instrumentor.instrument(skip_dep_check=True, enable="sampled", tracer_provider=None, ring_kib=64)
    instrumentor.instrument()
    instrumentor.uninstrument()

    assert [("start", {"enable": "sampled", "ring_kib": 64}), ("stop", {})] == calls


@pytest.mark.parametrize(("value", "starts"), [("true", 0), (" TRUE ", 0), ("false", 1), ("", 1)])
def test_disabled_sdk(calls, instrumentor, monkeypatch, value, starts):
    """Without an SDK there are no spans, and nothing is started."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", value)
    instrumentor.instrument()

    assert starts == len(calls)


def test_wrong_setting(instrumentor):
    """A wrong setting in a call is the error that start() raises."""
    with pytest.raises(ConfigError, match="nothing"):
        instrumentor.instrument(enable=["nothing"])
