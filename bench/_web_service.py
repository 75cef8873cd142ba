# SPDX-License-Identifier: Apache-2.0
"""A FastAPI service under uvicorn and uvloop, for web.py; run by _load.py, which says what it takes and answers."""

from __future__ import annotations

import gc
import socket
import sys
import threading
import time
from typing import Any

import uvicorn
from _harness import say
from _service import Nowhere
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NoOpTracerProvider

import ebpftrace
from ebpftrace.breakdown import BreakdownProcessor
from ebpftrace.context import _publisher, hooks
from ebpftrace.context.enable import program_mask

OURS = ("published", "breakdown", "sched")


def make_app(provider: Any) -> FastAPI:
    """Make the service; with a provider of the SDK, under OpenTelemetry's instrumentation."""
    tracer = provider.get_tracer("service")
    app = FastAPI()

    @app.get("/prices")
    async def prices() -> Any:
        with tracer.start_as_current_span("look up", attributes={"db.system": "memory", "items": 20}):
            return sorted(
                ({"id": number, "price": number * 37 % 101} for number in range(20)), key=lambda i: i["price"]
            )

    if isinstance(provider, TracerProvider):
        FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    return app


def exporting() -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider


class Switch:
    """The service in one of the modes, from one moment to the next: start() and stop() would take longer than a slice.

    Without the library means: no program attached, OpenTelemetry's own runtime context, a provider that it never saw.
    """

    def __init__(self) -> None:
        self._apps = {"nothing": make_app(NoOpTracerProvider()), "otel": make_app(exporting())}
        session = ebpftrace.start()
        if not session.active:
            sys.exit(f"the library did not start: {session.reason}")
        ours = make_app(exporting())
        self._apps |= dict.fromkeys(OURS, ours)
        self._processors = [each for each in gc.get_objects() if type(each) is BreakdownProcessor]
        self._objects = [program.object for program in session._kernel.programs]  # type: ignore[union-attr]
        self._attached = True
        self.to("nothing")

    def to(self, mode: str) -> None:
        """Run in this mode from now on."""
        on = mode in OURS
        self.app = self._apps[mode]
        _publisher.set_default_mask(program_mask(("sched",)) if mode == "sched" else 0)
        for processor in self._processors:
            processor._measuring = mode in ("breakdown", "sched")
        if on != self._attached:
            hooks.install(lambda: None) if on else hooks.uninstall()
            for each in self._objects:
                each.attach() if on else each.detach()
            self._attached = on


def take_orders(switch: Switch, server: uvicorn.Server) -> None:
    """Until stdin ends, and the server with it."""
    for line in sys.stdin:
        order = line.strip()
        if order != "cpu":
            switch.to(order)
        print(time.process_time_ns(), flush=True)
    server.should_exit = True


def main() -> None:
    switch = Switch()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await switch.app(scope, receive, send)

    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application, loop="uvloop", http="h11", lifespan="off", log_level="warning", access_log=False
    )
    server = uvicorn.Server(config)
    threading.Thread(target=take_orders, args=(switch, server), daemon=True).start()
    print(listening.getsockname()[1], flush=True)
    server.run(sockets=[listening])
    found = ebpftrace.stats()
    say(f"{found['breakdown']} {found['spans']} {found['programs']['sched']}")


if __name__ == "__main__":
    main()
