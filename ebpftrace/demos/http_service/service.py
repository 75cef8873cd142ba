# SPDX-License-Identifier: Apache-2.0
"""A shop that takes orders: an ordinary Flask service with OpenTelemetry, and one line for ebpftrace.

An order does what services do: it asks another endpoint over HTTP, takes a lock that all orders share, computes,
writes a log to disk, and runs a small program. It stops when its standard input is closed, so that it cannot outlive
whoever started it.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import waitress  # type: ignore[import-untyped]
from flask import Flask, request
from opentelemetry import propagate, trace
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

import ebpftrace
from ebpftrace.spans.otlp_json import FileSpanExporter

THREADS = 8
_SIGN_MS = 0.8  # CPU time that one item adds to the signature
_COUNT_MS = 2.0
_CATALOGUE_ITEMS = 400
_HOST = "127.0.0.1"

tracer = trace.get_tracer("shop")


class Shop:
    """What the handlers work with.

    Args:
        orders: the file that every order is appended to, durably.
    """

    def __init__(self, orders: Path) -> None:
        self._log = orders.open("ab", buffering=0)
        self._stock_lock = threading.Lock()
        self._stock = dict.fromkeys((f"sku-{number}" for number in range(_CATALOGUE_ITEMS)), 1_000_000)
        self._rounds = _rounds_per_ms()
        self._packer = shutil.which("gzip")  # not in every container image
        self.port = 0

    def inventory(self, sku: str) -> dict[str, Any]:
        """What the shop knows about an item, looked up as carelessly as such things are."""
        catalogue = json.loads(json.dumps([{"sku": name, "left": left} for name, left in self._stock.items()]))
        return next((item for item in catalogue if item["sku"] == sku), {"sku": sku, "left": 0})

    def check_stock(self, sku: str) -> int:
        """Ask the inventory endpoint, over HTTP as if it were another service."""
        with tracer.start_as_current_span("check stock", kind=trace.SpanKind.CLIENT):
            headers: dict[str, str] = {}
            propagate.inject(headers)
            connection = http.client.HTTPConnection(_HOST, self.port, timeout=30)
            try:
                connection.request("GET", f"/inventory/{sku}", headers=headers)
                return int(json.load(connection.getresponse())["left"])
            finally:
                connection.close()

    def reserve(self, skus: list[str]) -> None:
        """Take the items off the stock; one order at a time, because the totals are counted inside the lock."""
        with tracer.start_as_current_span("reserve items"), self._stock_lock:
            for sku in skus:
                self._stock[sku] -= 1
            totals = json.dumps(self._stock, sort_keys=True).encode()
            hashlib.pbkdf2_hmac("sha256", totals, b"", int(self._rounds * _COUNT_MS))

    def sign(self, skus: list[str]) -> str:
        """Sign the invoice: CPU work, more of it for a larger order."""
        with tracer.start_as_current_span("sign invoice"):
            rounds = int(self._rounds * _SIGN_MS * len(skus))
            return hashlib.pbkdf2_hmac("sha256", " ".join(skus).encode(), b"", rounds).hex()

    def write_log(self, line: str) -> None:
        """Append the order to the log and wait until it is on disk."""
        with tracer.start_as_current_span("write order log"):
            self._log.write(line.encode() + b"\n")
            os.fsync(self._log.fileno())

    def pack(self, invoice: str) -> int:
        """Pack the invoice for the archive with another program; its size."""
        with tracer.start_as_current_span("pack invoice"):
            if self._packer is None:
                return len(invoice)
            done = subprocess.run([self._packer, "-9", "-c"], input=invoice.encode(), capture_output=True, check=True)  # noqa: S603
            return len(done.stdout)


def build_app(shop: Shop) -> Flask:
    """Return the web application."""
    app = Flask("shop")

    @app.post("/orders")
    def orders() -> dict[str, Any]:
        skus: list[str] = request.get_json()["skus"]
        left = shop.check_stock(skus[0])
        shop.reserve(skus)
        signature = shop.sign(skus)
        shop.write_log(json.dumps({"skus": skus, "signature": signature}))
        return {"left": left, "signature": signature, "archived": shop.pack(f"{signature}\n" * len(skus))}

    @app.get("/inventory/<sku>")
    def inventory(sku: str) -> dict[str, Any]:
        return shop.inventory(sku)

    FlaskInstrumentor().instrument_app(app)  # type: ignore[no-untyped-call]
    return app


def _rounds_per_ms() -> float:
    """Measure how fast this machine hashes, so that an order costs about the same everywhere."""
    rounds, best = 5000, float("inf")
    for _ in range(5):
        start = time.perf_counter()
        hashlib.pbkdf2_hmac("sha256", b"calibrate", b"", rounds)
        best = min(best, time.perf_counter() - start)
    return rounds / (best * 1000)


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201  (how it talks to who started it)


def _stop_at_end_of_input() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _terminate(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the spans are being written
    raise SystemExit


def main() -> int:
    """Serve until standard input ends, saying on standard output what happens, as JSON lines."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", required=True, metavar="FILE", help="where the spans go, as OTLP JSON lines")
    parser.add_argument("--orders", required=True, metavar="FILE", help="the log of orders")
    args = parser.parse_args()

    session = ebpftrace.start(enable=["sched", "exec"])  # the one line for ebpftrace

    provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource({"service.name": "shop"}))
    exporter = FileSpanExporter(args.output)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=1 << 16))
    trace.set_tracer_provider(provider)

    shop = Shop(Path(args.orders))
    server = waitress.create_server(build_app(shop), host=_HOST, port=0, threads=THREADS, ident=None)
    shop.port = server.effective_port
    signal.signal(signal.SIGTERM, _terminate)
    threading.Thread(target=_stop_at_end_of_input, name="stdin", daemon=True).start()
    _say(port=shop.port, active=session.active, reason=session.reason)
    server.run()

    provider.shutdown()
    _say(stats=ebpftrace.stats(), exported=exporter.exported, failed=exporter.failed)
    ebpftrace.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
