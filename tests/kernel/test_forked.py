# SPDX-License-Identifier: Apache-2.0
"""A fork in place of a fresh interpreter tells the same of its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from forked import run
from machine import children


def outcome(function, timeout_s=10.0):
    """The exit code and what was written; None when it was killed."""
    done = run(function, ["0"], timeout_s)
    return done and (done.returncode, done.stdout, done.stderr)


def talk(_):
    """Write through Python, past it, and by a child."""
    print("one", flush=True)
    os.write(2, b"two\n")
    subprocess.run(["echo", "three"], check=True)


def crash(_):
    """Die by a signal."""
    os.kill(os.getpid(), 9)


def test_output():
    """What the fork and its children write comes back, each stream by itself."""
    assert (0, "one\nthree\n", "two\n") == outcome(talk)


def test_much_output():
    """More than a pipe holds comes back, too."""
    assert (0, "x" * 300_000, "") == outcome(lambda _: print("x" * 300_000, end=""))


@pytest.mark.parametrize(("how", "code"), [(3, 3), (None, 0), ("words", 1)])
def test_exit(how, code):
    """sys.exit() means what it means in an interpreter."""
    assert code == outcome(lambda _: sys.exit(how))[0]


def test_exception():
    """An exception is code 1, with its traceback."""
    code, _, errors = outcome(lambda _: {}["nothing"])

    assert 1 == code
    assert "KeyError" in errors


def test_signal():
    """Death by a signal is a negative code, as subprocess has it."""
    assert -9 == outcome(crash)[0]


def test_too_slow():
    """One that takes too long is killed with its children."""
    started = time.monotonic()

    assert outcome(lambda _: subprocess.run(["sleep", "30"], check=True), timeout_s=1.0) is None
    assert time.monotonic() - started < 5
    assert [] == children()
