# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

from spans_support import exit_code, fork

from ebpftrace.spans.tally import Tally


def test_counts_from_many_threads_add_up():
    """No increment is lost between threads."""
    tally = Tally()
    threads = [threading.Thread(target=lambda: [tally.add("n") for _ in range(5000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert tally["n"] == 20_000


def test_first_is_told_once():
    """Only the first caller is told, so a log line does not repeat."""
    tally = Tally()

    assert [tally.first("error") for _ in range(3)] == [True, False, False]


def test_forked_child_starts_from_zero_even_while_the_lock_was_held():
    """A child forked while another thread counted neither hangs nor reports the parent's work."""
    tally = Tally()
    tally.add("n", 7)

    def check():
        fresh = tally["n"]  # would hang on the parent's lock
        tally.add("n")
        return (fresh, tally["n"]) == (0, 1)

    with tally._lock:
        child = fork(check)

    assert exit_code(child) == 0
    assert tally["n"] == 7
