# SPDX-License-Identifier: Apache-2.0
"""Requests over loopback, several at once, from threads without spans."""

from __future__ import annotations

import http.client
import threading
import time

THREADS = 6
REQUESTS = 5
_WAIT_S = 20.0


def load(port, paths):
    """Send requests from several threads at once.

    Raises:
        AssertionError: an answer was none, or not as expected.
    """
    problems = []

    def client(number):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            for turn in range(REQUESTS):
                path = paths[(number + turn) % len(paths)]
                connection.request("GET", path)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    problems.append(f"{path}: {answer.status} {body[:200]!r}")
            connection.close()
        except Exception as error:  # noqa: BLE001  (told by the caller)
            problems.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise AssertionError(f"{len(problems)} requests failed, the first: {problems[0]}")


def get(port, path):
    """One answer's body; waits for a server that is not there yet."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        finally:
            connection.close()
