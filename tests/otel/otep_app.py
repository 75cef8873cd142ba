# SPDX-License-Identifier: Apache-2.0
"""Programs that run the library, and do step by step what a test says, so that it can read them from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

from otep import Process

# root, too, is to be refused; others are anyway, and may not drop what they do not have
UNPRIVILEGED = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all") if os.geteuid() == 0 else ()

HEAD = """
import json, os, sys, threading
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
import ebpftrace

def hexadecimal(span):
    context = span.get_span_context()
    return [format(context.trace_id, "032x"), format(context.span_id, "016x"), int(context.trace_flags)]

def say(value):
    print(json.dumps(value), flush=True)
    return sys.stdin.readline()

def provide(**attributes):
    provider = TracerProvider(resource=Resource(attributes), shutdown_on_exit=False)
    trace.set_tracer_provider(provider)
    return provider.get_tracer("app")
"""


class Application:
    """A program that talks: each line that it says is JSON, and it waits for a line in turn.

    Args:
        code: follows HEAD.
        prefix: a command to run Python under. By default it may not load BPF programs, so that what it publishes is
            for other readers only.
        env: added to the environment.
    """

    def __init__(self, code, *, prefix=UNPRIVILEGED, **env):
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", HEAD + textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        self.reader = Process(self.process.pid)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.communicate()

    def said(self):
        """What it says next."""
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return json.loads(line)

    def go_on(self):
        """Let it go on."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
