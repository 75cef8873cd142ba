# SPDX-License-Identifier: Apache-2.0
"""Greenlets in place of threads: in interpreters of their own, for patching cannot be undone."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

_HEAD = """
    import ctypes, os, threading, time
    from ebpftrace.spans.green import Nap, in_real_thread, threads_are_greenlets
    assert not threads_are_greenlets()
    from gevent import monkey
    monkey.patch_all()
    import gevent
    usleep = ctypes.CDLL(None).usleep
"""


def _run(body):
    """What a program prints."""
    script = textwrap.dedent(_HEAD) + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_real_thread():
    """Others run while a call is in a real thread; what it returns, and what it raises, comes back."""
    found = _run("""
        assert threads_are_greenlets()
        ticks = []
        ticker = gevent.spawn(lambda: [ticks.append(time.sleep(0.01)) for _ in range(1000)])
        here = in_real_thread(lambda: (usleep(300_000), threading.get_native_id())[1])
        print(here == os.getpid(), len(ticks) > 5)
        try:
            in_real_thread(int, "x")
        except ValueError as error:
            print("raised")
    """)

    assert found == ["False", "True", "raised"]


def test_real_thread_and_fork():
    """A greenlet that waits for a real thread ends silently in a child, where that thread is not."""
    found = _run("""
        waiting = gevent.spawn(in_real_thread, usleep, 500_000)
        time.sleep(0.1)
        if os.fork() == 0:
            waiting.join(5)
            os.write(1, f"child {waiting.dead} ".encode())
            os._exit(0)
        os.wait()
        waiting.join(5)
        print("parent", waiting.value)
    """)

    assert found == ["child", "True", "parent", "0"]


@pytest.mark.parametrize("end", [True, False])
def test_nap(end):
    """A nap lasts as long as told, or until it is ended; others run meanwhile."""
    [seconds] = _run(f"""
        nap = Nap()
        nap.end()
        started = time.monotonic()
        nap.take(5)  # ended before it began
        first = time.monotonic() - started
        started = time.monotonic()
        gevent.spawn_later(0.1 if {end} else 9, nap.end)
        gevent.joinall([gevent.spawn(nap.take, 0.6)])
        print(time.monotonic() - started if first < 1 else "late")
    """)

    assert float(seconds) < 0.5 if end else 0.6 <= float(seconds) < 5
