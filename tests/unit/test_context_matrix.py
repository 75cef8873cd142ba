# SPDX-License-Identifier: Apache-2.0
"""The context matrix around its scenarios: judging, grouping, the page."""

from __future__ import annotations

import matrix
import oracle
import page
import pytest
import runner
import scenarios
from pythons import Python

A, B = (b"t" * 16, b"a" * 8), (b"t" * 16, b"b" * 8)


def result(**changes):
    """A result as `matrix` makes it."""
    place = {"python": "3.11", "mode": "auto", "family": "asyncio", "name": "gather", "excused": "", "status": "run"}
    counts = {"checks": 10, "right": 10, "unknown": 0, "wrong": 0, "spurious": 0, "lost": 0, "examples": []}
    return {**place, **counts, **changes}


def not_run(status, reason, **changes):
    """A result without checks."""
    return {
        "python": "3.11", "mode": "auto", "family": "uvloop", "name": "gather", "excused": "", "status": status,
        "reason": reason, "output": "", **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("truth", "seen", "outcome"),
    [(A, A, "right"), (None, None, "right"), (A, None, "unknown"), (A, B, "wrong"), (None, A, "spurious")],
)
def test_judge(truth, seen, outcome):
    """What BPF saw is right, unknown, wrong or spurious."""
    assert outcome == oracle.judge(truth, seen)


def test_names():
    """No two scenarios have the same name, by which results are told apart."""
    keys = [runner.key(each) for each in scenarios.load((*scenarios.MODULES, scenarios.SABOTAGE))]

    assert len(keys) == len(set(keys))


def test_batches():
    """Every scenario is in one batch, of its own family; one that wants a process of its own has it."""
    every = scenarios.load()
    batches = list(runner.batches(every))

    assert sorted(map(runner.key, every)) == sorted(runner.key(each) for batch in batches for each in batch)
    assert all(len({each.family for each in batch}) == 1 for batch in batches)
    assert all(len(batch) == 1 for batch in batches if any(each.alone for each in batch))


@pytest.mark.parametrize("outcome", ["wrong", "spurious", "lost", "unknown"])
def test_bad(outcome):
    """A check that is not right is bad with the hooks on."""
    [told] = matrix.bad([result(**{outcome: 1})])

    assert told.startswith(f"Python 3.11, hooks auto, asyncio, gather: 1 {outcome}")


def test_not_bad():
    """An unknown is as it must be without hooks, and where there is an excuse."""
    assert [] == list(matrix.bad([result(), result(mode="none", unknown=5), result(unknown=1, excused="known")]))


def test_failed_is_bad():
    """A scenario that ended in an error is bad, one that cannot run here is not."""
    results = [not_run("failed", "ValueError: x"), not_run("not run", "no module")]

    assert ["Python 3.11, hooks auto, uvloop, gather: ValueError: x\n"] == list(matrix.bad(results))


def test_page():
    """The page has each mode's figures by framework and Python, and says what did not run, and why."""
    pythons = [
        Python("3.11", "3.11.2", "", versions={"uvloop": "0.21"}),
        Python("3.13t", "3.13.5", "", missing={"uvloop": "no wheel"}, gil=False),
    ]
    results = [
        result(hooks={"run": "on", "greenlet": "no greenlets here"}),
        result(name="streams", checks=5, wrong=1, spurious=1, unknown=2, excused="told | here"),
        result(python="3.13t", checks=7),
        result(mode="none", checks=10, unknown=6),
        result(mode="greenlet", hooks={"run": "not asked for", "greenlet": "no greenlets here"}),
        not_run("not run", "no wheel", python="3.13t"),
        not_run("failed", "it crashed"),
    ]
    text = page.page("6.18 on this machine", pythons, results)

    assert "Kernel 6.18 on this machine." in text
    assert "| uvloop | 0.21 | not installed |" in text
    assert "| 3.13t | 3.13.5 | off |" in text
    assert "| greenlet | no greenlets here | — |" in text
    assert "## Hooks: greenlet\n\n- 3.11 without it: no greenlets here\n\n|" in text
    assert "| auto | 15 / 2 / 2, 1 failed | 7 / 0 / 0, 1 not run |" in text
    assert "## Hooks: none\n\n|  | 3.11 | 3.13t |\n|---|---|---|\n| asyncio | 10 / 0 / 6 | — |" in text
    assert "| asyncio, streams | told \\| here | 3.11 auto |" in text
    assert "| uvloop, gather | no wheel | 3.13t auto |" in text
    assert "| uvloop, gather | it crashed | 3.11 auto |" in text
