# SPDX-License-Identifier: Apache-2.0
"""`enable="sampled"`: every program that is loaded, for every sampled span and for no other."""

from __future__ import annotations

import subprocess
import time

import pytest
from harness import App, below, kernel, named, own, run

pytestmark = pytest.mark.usefixtures("bpf")


def sampled(ratio):
    """Spans that nobody enables anything for; how many records the kernel made."""
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

    app = App(enable="sampled", sampler=TraceIdRatioBased(ratio))
    with app.span("outer"):
        subprocess.run(["/bin/true"], check=True)
        with app.span("inner"):
            time.sleep(0.01)
    return {"spans": app.spans(), "stats": app.session.stats(), "settings": app.session.settings.programs}


def test_sampled():
    """Sampled spans have kernel spans of every program that is loaded, nested ones too; no program is loaded for it."""
    found = run(sampled, 1.0).value
    spans = found["spans"]

    assert ["exec", "sched"] == found["settings"]
    assert "exec" in {span["program"] for span in below(spans, named(spans, "outer"))}
    assert "sleep" in {span["name"] for span in below(spans, named(spans, "inner"))}


def test_unsampled():
    """For spans that are not sampled the kernel makes no record."""
    found = run(sampled, 0.0).value

    assert ([], []) == (own(found["spans"]), kernel(found["spans"]))
    assert found["stats"]["active"]
    assert {"exec": 0, "sched": 0} == {name: counts["records"] for name, counts in found["stats"]["programs"].items()}


def by_environment():
    """The same by the variable, and a program named beside."""
    app = App()
    with app.span("work"):
        time.sleep(0.01)
    return app.spans()


def test_environment():
    """EBPFTRACE_ENABLE=sampled says the same."""
    spans = run(by_environment, env={"EBPFTRACE_ENABLE": "sampled"}).value

    assert "sleep" in {span["name"] for span in below(spans, named(spans, "work"))}
