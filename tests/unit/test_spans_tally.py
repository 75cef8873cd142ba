# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import threading

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
    with tally._lock:
        pid = os.fork()
        if pid == 0:
            fresh = tally["n"]  # would hang on the parent's lock
            tally.add("n")
            os._exit(0 if (fresh, tally["n"]) == (0, 1) else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert tally["n"] == 7
