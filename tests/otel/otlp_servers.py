# SPDX-License-Identifier: Apache-2.0
"""Real OTLP servers on loopback that do as they are told, over HTTP and over gRPC; and spans for them.

Each reply of a server is the next one of `script`, or `then` when that is empty.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import gzip
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from ebpftrace.spans.model import KernelSpan
from ebpftrace.spans.pipeline import Chunk
from ebpftrace.spans.protobuf import encode_spans

TRACE_ID = 0x0123456789ABCDEF_FEDCBA9876543210
_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@dataclass
class Reply:
    """What a server says. `status` is HTTP's or, as text, gRPC's."""

    status: int | str = 200
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    rejected: int = 0
    retry_delay_s: float | None = None
    delay_s: float = 0.0
    cut: bool = False  # close the connection instead of answering
    body: bytes | None = None  # of HTTP, instead of the right one

    @property
    def accepts(self):
        """It is a success."""
        return self.status in (200, "OK")

    def response(self):
        """Encode the answer to an accepted request."""
        if not (self.rejected or self.text):
            return b""
        partial = ExportTracePartialSuccess(rejected_spans=self.rejected, error_message=self.text)
        return ExportTraceServiceResponse(partial_success=partial).SerializeToString()


class Collector:
    """What both servers share: the script, and what arrived."""

    def __init__(self):
        self.script = collections.deque()
        self.then = Reply()
        self.requests = []  # that it accepted
        self.attempts = []  # (monotonic time, metadata) of all requests
        self.hold = threading.Event()  # replies wait for it
        self.hold.set()

    def next_reply(self):
        """Take the next one of the script."""
        with contextlib.suppress(IndexError):
            return self.script.popleft()
        return self.then

    def arrived(self, metadata, body):
        """Note a request, wait as long as told, say what to answer."""
        self.attempts.append((time.monotonic(), metadata))
        reply = self.next_reply()
        self.hold.wait(30)
        time.sleep(reply.delay_s)
        if reply.accepts:
            self.requests.append(ExportTraceServiceRequest.FromString(body))
        return reply

    @property
    def resource_spans(self):
        """All groups of all requests."""
        return [group for request in self.requests for group in request.resource_spans]

    @property
    def spans(self):
        """All spans of all requests."""
        return [span for group in self.resource_spans for scope in group.scope_spans for span in scope.spans]

    @property
    def numbers(self):
        """The numbers that `chunk` gave the spans, sorted."""
        return sorted(int.from_bytes(span.span_id, "big") for span in self.spans)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address, handler, context):
        super().__init__(address, handler)
        self.connections = set()
        self.accepted = 0
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def finish_request(self, request, client_address):
        self.connections.add(request)
        self.accepted += 1
        # a client that refuses our certificate, or one that was cut off, is what tests are about
        with contextlib.suppress(OSError):
            super().finish_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        with contextlib.suppress(OSError):
            super().shutdown_request(request)


class HttpCollector(Collector):
    """An OTLP/HTTP server; `stop` and `start` are an outage on one port."""

    def __init__(self, context=None):
        super().__init__()
        self._context = context
        self._server = self._thread = None
        self.port = 0
        self.paths = []
        self.start()

    @property
    def url(self):
        """What to put into OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"{'https' if self._context else 'http'}://localhost:{self.port}"

    @property
    def connections(self):
        """How many connections were made since it was started."""
        return self._server.accepted

    def start(self):
        """Listen, on the port of before when there was one."""
        self._server = _Server(("127.0.0.1", self.port), self._handler(), self._context)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self):
        """Refuse connections and cut those there are."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        server.server_close()
        for connection in list(server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _handler(self):
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                """Do as told."""
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.paths.append(self.path)
                reply = collector.arrived({key.lower(): value for key, value in self.headers.items()}, body)
                if reply.cut:
                    self.close_connection = True
                    return
                answer = reply.response() if reply.accepts else Status(message=reply.text).SerializeToString()
                answer = answer if reply.body is None else reply.body
                self.send_response(reply.status)
                headers = {"Content-Type": "application/x-protobuf", "Content-Length": str(len(answer))}
                for key, value in (headers | reply.headers).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args):
                """Keep the test output clean."""

        return Handler


class GrpcCollector(Collector):
    """An OTLP/gRPC server with the default limits."""

    def __init__(self, credentials=None):
        super().__init__()
        self._credentials = credentials
        self._server = None
        self.port = 0
        self.start()

    @property
    def url(self):
        """What to put into OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"{'https' if self._credentials else 'http'}://localhost:{self.port}"

    def start(self):
        """Listen, on the port of before when there was one."""
        pool = concurrent.futures.ThreadPoolExecutor(4)
        self._server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        handler = grpc.unary_unary_rpc_method_handler(self._export)
        service, _, method = _METHOD[1:].rpartition("/")
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        address = f"127.0.0.1:{self.port}"
        if self._credentials:
            self.port = self._server.add_secure_port(address, self._credentials)
        else:
            self.port = self._server.add_insecure_port(address)
        self._server.start()

    def stop(self):
        """Refuse connections and cut those there are."""
        if self._server is not None:
            server, self._server = self._server, None
            server.stop(None).wait()

    def _export(self, body, context):
        reply = self.arrived(dict(context.invocation_metadata()), body)
        if reply.accepts:
            return reply.response()
        code = getattr(grpc.StatusCode, reply.status)
        if reply.retry_delay_s is not None:
            nanos = int(reply.retry_delay_s * 1e9)
            info = RetryInfo(retry_delay=Duration(seconds=nanos // 10**9, nanos=nanos % 10**9))
            detail = Any()
            detail.Pack(info)
            status = Status(code=code.value[0], message=reply.text, details=[detail])
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        return context.abort(code, reply.text)


@contextlib.contextmanager
def running(collector):
    """Stop it in the end."""
    try:
        yield collector
    finally:
        collector.hold.set()
        collector.stop()


def chunk(numbers, *, service="", program="sched", padding=0):
    """Encode spans of these numbers, each `padding` bytes longer than need be."""
    spans = [
        KernelSpan(
            trace_id=TRACE_ID,
            span_id=number,
            parent_span_id=0,
            name=f"span {number}",
            start_ns=1_700_000_000_000_000_000 + number,
            end_ns=1_700_000_000_000_000_500 + number,
            attributes={"padding": "x" * padding} if padding else {},
            program=program,
        )
        for number in numbers
    ]
    return Chunk(service, program, encode_spans(spans), len(spans))


def wait_until(condition, timeout_s=10.0):
    """Wait for a condition; what it was in the end."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()
