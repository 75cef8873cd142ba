# SPDX-License-Identifier: Apache-2.0
"""A Flask service for gunicorn's gevent workers: each request keeps the worker asleep, and lets others run."""

from __future__ import annotations

import time

import flask
import greenlets
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import ebpftrace

trace.set_tracer_provider(TracerProvider())
ebpftrace.start()
tracer = trace.get_tracer("service")
app = flask.Flask("service")


@app.get("/<int:milliseconds>")
def work(milliseconds):
    """A span that sleeps three times, for as long as it is told, and others run in between."""
    with tracer.start_as_current_span(f"sleep {milliseconds}"), ebpftrace.enable("sched"):
        for _ in range(3):
            greenlets.block(milliseconds)
            time.sleep(0.001)
    return "done"


@app.get("/active")
def active():
    """Is this worker traced? A preloaded one starts the library at its first span, in the background."""
    with tracer.start_as_current_span("active"):
        return str(ebpftrace.stats()["active"])
