# SPDX-License-Identifier: Apache-2.0
"""A small Flask service under OpenTelemetry's instrumentation, for breakdown.py.

Run as a program it serves HTTP on loopback and takes orders on stdin, one word a line: "off", "loaded", "on" say how
the library is to run from now on, "cpu" changes nothing; each is answered by the process's CPU time in nanoseconds.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import opentelemetry.context as otel
import waitress
from _harness import say
from flask import Flask, jsonify
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import ebpftrace
from ebpftrace.breakdown import BreakdownProcessor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Nowhere(SpanExporter):
    """Takes spans and forgets them: the network's cost is the same in all variants."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002
        return SpanExportResult.SUCCESS


def make_app() -> Flask:
    """Make the service with a provider of its own: two spans a request, one by the instrumentation and one below."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    tracer = provider.get_tracer("service")
    app = Flask("service")

    @app.get("/prices")
    def prices() -> Any:
        with tracer.start_as_current_span("look up", attributes={"db.system": "memory", "items": 20}):
            items = sorted(
                ({"id": number, "price": number * 37 % 101} for number in range(20)), key=lambda i: i["price"]
            )
        return jsonify(items)

    FlaskInstrumentor().instrument_app(app, tracer_provider=provider)
    return app


def request(app: Flask) -> Callable[[int], None]:
    """Return what has the app answer so many requests, without a server in between."""
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/prices",
        "QUERY_STRING": "",
        "SCRIPT_NAME": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "HTTP_USER_AGENT": "bench",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": None,
        "wsgi.errors": sys.stderr,
    }

    def start_response(status: str, headers: Any, exc_info: Any = None) -> None:  # noqa: ARG001
        if status != "200 OK":
            raise RuntimeError(status)

    def run(count: int) -> None:
        for _ in range(count):
            answer = app(dict(environ), start_response)
            for _part in answer:
                pass
            answer.close()  # type: ignore[attr-defined]  # ends the request's context, as a server does

    return run


class Switch:
    """The library off, loaded, or on, from one moment to the next: start() and stop() would take longer than a slice.

    Off means: no program attached, OpenTelemetry's own runtime context, a provider that the library never saw.
    """

    def __init__(self) -> None:
        self._plain = make_app()  # before start(), so that it stays as the SDK makes it
        session = ebpftrace.start()
        if not session.active:
            sys.exit(f"the library did not start: {session.reason}")
        self._ours = make_app()
        self._processors = [each for each in gc.get_objects() if type(each) is BreakdownProcessor]
        self._objects = [program.object for program in session._kernel.programs]  # type: ignore[union-attr]
        self._runtime: Any = otel._RUNTIME_CONTEXT
        self._attached = True
        self.app = self._ours
        self.to("off")

    def to(self, mode: str) -> None:
        """Run in this mode from now on."""
        on = mode != "off"
        self.app = self._ours if on else self._plain
        otel._RUNTIME_CONTEXT = self._runtime if on else self._runtime.inner
        for processor in self._processors:
            processor._measuring = mode == "on"
        if on != self._attached:
            for each in self._objects:
                each.attach() if on else each.detach()
            self._attached = on


def main() -> None:
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a full queue is what keeps the service busy
    switch = Switch()

    def application(environ: Any, start_response: Any) -> Any:
        return switch.app(environ, start_response)

    server = waitress.create_server(application, host="127.0.0.1", port=0)
    threading.Thread(target=server.run, daemon=True).start()
    print(server.effective_port, flush=True)
    for line in sys.stdin:
        order = line.strip()
        if order != "cpu":
            switch.to(order)
        print(time.process_time_ns(), flush=True)
    say(f"{ebpftrace.stats()['breakdown']}")


if __name__ == "__main__":
    main()
