# SPDX-License-Identifier: Apache-2.0
"""Real backends, as scripts/backends.sh builds them: an OpenTelemetry Collector that writes a file, and Jaeger.

Both are processes on loopback with ports of their own. Spans are compared as dicts that have every field of OTLP, and
each attribute's type, for to Python 1, 1.0 and True are equal.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from otlp_servers import wait_until

BUILT = Path(__file__).parents[2] / "build/backends"

_KINDS = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}
_STATUSES = {"unset": 0, "ok": 1, "error": 2}
_IDS = ("traceId", "spanId", "parentSpanId")  # hexadecimal in OTLP's JSON, base64 in everybody else's


class Backend:
    """A process that takes OTLP over HTTP and gRPC.

    Args:
        folder: for its configuration, its log and what it writes.

    Attributes:
        process: while it runs.
    """

    name = ""

    def __init__(self, folder):
        self.folder = folder
        self.http, self.grpc, self.query, self._other = _free_ports(4)
        self.process = None
        self._log = folder / f"{self.name}.log"

    def config(self):
        """What its configuration file says."""
        raise NotImplementedError

    def ready(self):
        """Does it answer?"""
        return _listens(self.http) and _listens(self.grpc)

    def receivers(self):
        """The part that both have."""
        protocols = {"http": {"endpoint": f"127.0.0.1:{self.http}"}, "grpc": {"endpoint": f"127.0.0.1:{self.grpc}"}}
        return {"otlp": {"protocols": protocols}}

    def telemetry(self):
        """Nothing about itself but warnings."""
        return {"metrics": {"level": "none"}, "logs": {"level": "warn"}}

    def env(self, protocol="http/protobuf"):
        """Have spans sent here."""
        port = self.grpc if protocol == "grpc" else self.http
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}

    def start(self):
        """Start it, on the ports of before, and wait until it answers."""
        path = self.folder / f"{self.name}.yaml"
        path.write_text(json.dumps(self.config()))  # which is YAML too
        quiet = {**os.environ, "OTEL_TRACES_SAMPLER": "always_off"}  # Jaeger would trace itself, to port 4317
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [BUILT / self.name, "--config", path], stdout=log, stderr=log, cwd=self.folder, env=quiet
            )
        wait_until(lambda: self.process.poll() is not None or self.ready(), 20)
        if self.process.poll() is not None or not self.ready():
            said = self._log.read_text()
            self.stop()
            pytest.fail(f"{self.name} did not start:\n{said}")
        return self

    def stop(self):
        """Have it finish what it took, and end it. Idempotent."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def freeze(self):
        """It takes connections, for the kernel does, and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        """It goes on."""
        self.process.send_signal(signal.SIGCONT)


class Otelcol(Backend):
    """The Collector; it appends every request to a file."""

    name = "otelcol"

    def config(self):
        """See `Backend`."""
        file = {"path": str(self.folder / "spans.jsonl"), "append": True, "flush_interval": "50ms"}
        return {
            "receivers": self.receivers(),
            "exporters": {"file": file},
            "service": {
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
                "telemetry": self.telemetry(),
            },
        }

    def spans(self):
        """Every span that it wrote; complete when it was stopped."""
        path = self.folder / "spans.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [span for line in lines for span in parsed(json.loads(line))]


class Jaeger(Backend):
    """Jaeger v2, with its store in memory."""

    name = "jaeger"

    def config(self):
        """See `Backend`."""
        return {
            "extensions": {
                "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 10_000}}}},
                "jaeger_query": {
                    "storage": {"traces": "memory"},
                    "http": {"endpoint": f"127.0.0.1:{self.query}"},
                    "grpc": {"endpoint": f"127.0.0.1:{self._other}"},
                },
            },
            "receivers": self.receivers(),
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
                "telemetry": self.telemetry(),
            },
        }

    def ready(self):
        """See `Backend`."""
        return super().ready() and _listens(self.query)

    def services(self):
        """The services that it has spans of."""
        return set(self._get("services").get("services", ()))

    def operations(self, service):
        """The names of a service's spans."""
        found = self._get(f"operations?service={service}").get("operations", ())
        return {operation["name"] for operation in found}

    def trace(self, trace_id):
        """A trace's spans, by its id in hexadecimal; none when it has no such trace."""
        with contextlib.suppress(FileNotFoundError):
            return parsed(self._get(f"traces/{trace_id}")["result"])
        return []

    def find(self, service):
        """All spans of all traces that a service is in."""
        query = f"query.service_name={service}&query.num_traces=1000"
        query += "&query.start_time_min=2020-01-01T00:00:00Z&query.start_time_max=2099-01-01T00:00:00Z"
        with contextlib.suppress(FileNotFoundError):
            return parsed(self._get(f"traces?{query}")["result"])
        return []

    def _get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.query}/api/v3/{path}", timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:  # how it says that nothing was found
                raise FileNotFoundError(path) from error
            raise AssertionError(f"Jaeger answered {error.code} to {path}: {error.read().decode()}") from error


@contextlib.contextmanager
def running(kind, folder):
    """A backend within the block; skips the test, with the reason, where it was not built."""
    if reason := why_not(kind.name):
        pytest.skip(reason)
    backend = kind(folder)
    try:
        yield backend.start()
    finally:
        backend.stop()


def why_not(name):
    """Why there is no such backend; "" when there is one."""
    if os.access(BUILT / name, os.X_OK):
        return ""
    try:
        reason = (BUILT / f"{name}.reason").read_text().strip()
    except FileNotFoundError:
        reason = "run make backends"
    return f"{name} is not built: {reason}"


# --- spans as dicts


def parsed(found):
    """Every span of OTLP's JSON, strictly: what protobuf's own parser does not know is an error."""
    message = json_format.ParseDict(_in_base64(found), TracesData())
    return flat(message.resource_spans)


def flat(resource_spans):
    """Every span of protobuf messages."""
    return [
        _flat(span, scope, group.resource)
        for group in resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def expected(span, resource, scope):
    """What must arrive of a `KernelSpan`.

    Args:
        span: that was sent; its attributes are those that must arrive, the program's included.
        resource: attributes of the sink's resource; a span's own service takes the place of its `service.*`.
        scope: name and version.
    """
    others = {key: value for key, value in resource.items() if not key.startswith("service.")}
    return {
        "trace": f"{span.trace_id:032x}",
        "id": f"{span.span_id:016x}",
        "parent": f"{span.parent_span_id:016x}" if span.parent_span_id else "",
        "state": "",
        "flags": 0x100,
        "name": span.name,
        "kind": _KINDS[span.kind],
        "start": span.start_ns,
        "end": span.end_ns,
        "attributes": typed(span.attributes),
        "status": (2, span.error) if span.error is not None else (_STATUSES[span.status], ""),
        "events": [(name, time_ns, {}) for name, time_ns in span.events],
        "links": [(f"{trace:032x}", f"{of:016x}", "", 0x100, {}) for trace, of in span.links],
        "dropped": (0, 0, 0),
        "resource": typed({**others, "service.name": span.service} if span.service else resource),
        "scope": scope,
    }


def typed(attributes):
    """Attributes with their OTLP types."""
    return {key: _typed(value) for key, value in attributes.items()}


def by_id(spans):
    """Spans in an order that does not depend on their way."""
    return sorted(spans, key=lambda span: (span["trace"], span["id"]))


def in_any_order(spans):
    """Spans with their events and links sorted: Jaeger keeps no order of them, only their times."""
    return [{**span, **{key: sorted(span[key], key=repr) for key in ("events", "links")}} for span in spans]


def _typed(value):
    if isinstance(value, tuple):
        return ("array_value", tuple(_typed(each) for each in value))
    return ({bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}[type(value)], value)


def _flat(span, scope, resource):
    return {
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "state": span.trace_state,
        "flags": span.flags,
        "name": span.name,
        "kind": span.kind,
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "attributes": _pairs(span),
        "status": (span.status.code, span.status.message),
        "events": [(event.name, event.time_unix_nano, _pairs(event)) for event in span.events],
        "links": [
            (link.trace_id.hex(), link.span_id.hex(), link.trace_state, link.flags, _pairs(link)) for link in span.links
        ],
        "dropped": (span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count),
        "resource": _pairs(resource),
        "scope": (scope.scope.name, scope.scope.version),
    }


def _pairs(message):
    keys = [each.key for each in message.attributes]
    assert len(set(keys)) == len(keys), f"an attribute is there twice: {sorted(keys)}"
    return {each.key: _value(each.value) for each in message.attributes}


def _value(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return (kind, tuple(_value(each) for each in value.array_value.values))
    return (kind, getattr(value, kind) if kind else None)


def _in_base64(found):
    if isinstance(found, list):
        return [_in_base64(each) for each in found]
    if isinstance(found, dict):
        return {
            key: base64.b64encode(bytes.fromhex(value)).decode() if key in _IDS else _in_base64(value)
            for key, value in found.items()
        }
    return found


# --- ports


def _free_ports(count):
    """Ports below those that the kernel gives to clients: nobody gets one by chance while its server is away."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    first, last = (low - 10_000, low) if low > 20_000 else (40_000, 60_000)
    ports = []
    for port in random.sample(range(first, last), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError(f"no {count} free ports between {first} and {last}")


def _listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    time.sleep(0.02)
    return False
