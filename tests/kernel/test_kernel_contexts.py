# SPDX-License-Identifier: Apache-2.0
"""The current span in the kernel, whatever the concurrency: the quick part of the context matrix, in this Python.

`make context-matrix` runs all of it on every Python; see tests/context_matrix.
"""

from __future__ import annotations

import oracle
import pytest
import runner
import scenarios

BATCHES = {
    f"{batch[0].family}" + (f" {batch[0].name}" if batch[0].alone else ""): batch
    for batch in runner.batches(each for each in scenarios.load() if each.quick)
}


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The oracle's program, compiled."""
    return oracle.compile_program(tmp_path_factory.mktemp("oracle"))


def _judged(batch, mode, program):
    """What ran, after what failed was told; skips where nothing can run."""
    results = list(runner.run(batch, mode=mode, program=program))
    failed = [(runner.key(each), result) for each, result in results if result["status"] == "failed"]
    assert [] == [f"{name}: {result['reason']}\n{result['output']}" for name, result in failed]
    ran = [(each, result) for each, result in results if result["status"] == "run"]
    if not ran:
        pytest.skip("; ".join(dict.fromkeys(result["reason"] for _, result in results)))
    return ran


def _not_right(results, outcomes):
    return {runner.key(each): result["examples"] for each, result in results if any(result[name] for name in outcomes)}


@pytest.mark.parametrize("family", BATCHES)
def test_with_hooks(family, program):
    """With the hooks on, every check finds the span that is current, none where there is none, and never another."""
    results = _judged(BATCHES[family], "auto", program)

    assert {} == _not_right(results, ("wrong", "spurious", "lost"))
    assert {} == _not_right([(each, result) for each, result in results if not each.excused], ("unknown",))


@pytest.mark.parametrize("family", ["asyncio", "uvloop", "gevent", "contexts"])
def test_without_hooks(family, program):
    """Without hooks, a span may not be found, but another one never is."""
    results = _judged(BATCHES[family], "none", program)

    assert {} == _not_right(results, ("wrong", "spurious", "lost"))
    assert 0 < sum(result["unknown"] for _, result in results)


def test_a_check_can_fail(program):
    """A context that is published wrongly is told as what it is."""
    sabotage = scenarios.load((scenarios.SABOTAGE,))
    each_outcome, no_stamp = (result for _, result in _judged(sabotage, "none", program))

    assert dict.fromkeys(oracle.OUTCOMES, 1) == {name: each_outcome[name] for name in oracle.OUTCOMES}
    assert 1 == no_stamp["spurious"]
