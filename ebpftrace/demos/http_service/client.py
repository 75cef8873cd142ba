# SPDX-License-Identifier: Apache-2.0
"""The shop's customers: a few of them order at the same time, most a little, some a lot."""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import sys
import threading
import time

_PAUSE_S = 0.02
_LARGE_EVERY = 6
_LARGE_ITEMS = 35


class Customer(threading.Thread):
    """Orders, waits for the answer, orders again; on one connection.

    Args:
        port: of the service, on this machine.
        until: when to stop, on the monotonic clock.
        number: decides what is ordered, so that every run orders the same.
    """

    def __init__(self, port: int, until: float, number: int) -> None:
        super().__init__(name=f"customer-{number}")
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._until = until
        self._number = number
        self._random = random.Random(number)  # noqa: S311  (nothing secret)
        self.durations: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Order until the time is up."""
        count = self._number
        while time.monotonic() < self._until:
            count += 2
            large = count % _LARGE_EVERY < 2
            start = time.perf_counter()
            try:
                self._order(_LARGE_ITEMS if large else self._random.randint(2, 6))
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._connection.close()
                self.failures.append(f"{type(error).__name__}: {error}")
            else:
                self.durations.append(time.perf_counter() - start)
            time.sleep(_PAUSE_S)
        self._connection.close()

    def _order(self, items: int) -> None:
        skus = [f"sku-{self._random.randrange(400)}" for _ in range(items)]
        body = json.dumps({"skus": skus})
        self._connection.request("POST", "/orders", body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != http.client.OK:
            raise ValueError(f"HTTP {answer.status}: {text[:200]!r}")


def main() -> int:
    """Order for a while, then say in one line of JSON how it went."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--customers", type=int, required=True)
    args = parser.parse_args()
    until = time.monotonic() + args.seconds
    customers = [Customer(args.port, until, number) for number in range(args.customers)]
    for customer in customers:
        customer.daemon = True  # a service that hangs must not keep this process
        customer.start()
    for customer in customers:
        customer.join()
    durations = [duration for customer in customers for duration in customer.durations]
    failures = [failure for customer in customers for failure in customer.failures]
    summary = {
        "orders": len(durations),
        "median_ms": statistics.median(durations) * 1000 if durations else 0,
        "slowest_ms": max(durations, default=0) * 1000,
        "failures": len(failures),
        "first_failure": failures[0] if failures else "",
    }
    print(json.dumps(summary), flush=True)  # noqa: T201  (how it talks to who started it)
    return 0


if __name__ == "__main__":
    sys.exit(main())
