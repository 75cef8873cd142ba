# SPDX-License-Identifier: Apache-2.0
"""What the tests of ebpftrace.spans share: made-up spans and a real OTLP/HTTP receiver."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ebpftrace.spans.model import KernelSpan

TRACE_ID = 0x0123456789ABCDEF_FEDCBA9876543210


def kernel_span(number=1, **changes):
    """Make a span that only differs from another one by its number."""
    fields = {
        "trace_id": TRACE_ID,
        "span_id": number,
        "parent_span_id": 0xABCD,
        "name": f"span {number}",
        "start_ns": 1_700_000_000_000_000_000 + number,
        "end_ns": 1_700_000_000_000_000_000 + 2 * number,
        "attributes": {"ebpftrace.program": "sched", "cpu": 3},
        "program": "sched",
    }
    return KernelSpan(**fields | changes)


def fork(check):
    """Run `check` in a forked child; its pid. The child exits 0 when that returned True, and cannot hang."""
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest-timeout's handler would go on with the tests
    signal.alarm(20)
    passed = False
    try:
        passed = check()
    finally:
        os._exit(0 if passed is True else 1)


def exit_code(pid):
    """Wait for a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Receiver:
    """An OTLP/HTTP endpoint: `url`, and the requests it decoded."""

    def __init__(self):
        self.requests = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                """Decode and keep one request."""
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                """Keep the test output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def resource_spans(self):
        """All groups of all requests."""
        return [group for request in self.requests for group in request.resource_spans]

    @property
    def spans(self):
        """All spans of all requests."""
        return [span for group in self.resource_spans for scope in group.scope_spans for span in scope.spans]


@contextlib.contextmanager
def receiver():
    """Run a receiver on a free loopback port."""
    endpoint = Receiver()
    thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.server.shutdown()
        endpoint.server.server_close()
        thread.join()
