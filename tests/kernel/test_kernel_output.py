# SPDX-License-Identifier: Apache-2.0
"""A file that spans cannot be written to costs the file, and nothing else."""

from __future__ import annotations

import time

import pytest
from harness import App, kernel, named, run


def to_a_file(path):
    """Trace into a file, with two providers that are asked for tracers more than once."""
    app, other = App(output=path), App(output=path)
    for provider in (app.provider, other.provider, app.provider):
        provider.get_tracer("again")
    with app.traced("job", "sched"):
        time.sleep(0.01)
    app.session.flush()
    return {"active": app.session.active, "spans": app.spans() + other.spans(), "stats": app.session.stats()["spans"]}


def _goes_on(outcome):
    """One warning about the file; the tracing is as without it."""
    [line] = outcome.log
    assert line.startswith("WARNING no spans are written to a file: ")
    assert outcome.value["active"]
    assert named(outcome.value["spans"], "job")["times"]["sleep"]
    assert "sleep" in {span["name"] for span in kernel(outcome.value["spans"])}
    assert outcome.value["stats"]["exported"] == outcome.value["stats"]["emitted"] > 0
    return line


@pytest.mark.parametrize("name", ["missing/spans.jsonl", ""])
def test_output_that_cannot_be_opened(tmp_path, name):
    """An output that cannot be opened, a directory or a file in none, is one warning with its path; tracing is on."""
    path = str(tmp_path / name)

    assert path in _goes_on(run(to_a_file, path))


def test_batch_settings_that_contradict_each_other(tmp_path):
    """OTEL_BSP_* variables that the SDK refuses cost the output alone: one warning, and get_tracer() never raises."""
    outcome = run(to_a_file, str(tmp_path / "spans.jsonl"), env={"OTEL_BSP_MAX_QUEUE_SIZE": "100"})

    assert "OTEL_BSP_" in _goes_on(outcome)
