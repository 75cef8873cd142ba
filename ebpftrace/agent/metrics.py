# SPDX-License-Identifier: Apache-2.0
"""The agent's HTTP endpoint: `/metrics`, `/healthz`, `/livez`.

    server = MetricsServer(take, "127.0.0.1:9435")   # bound: a port in use is an error now
    server.start()                                   # answers from here on, by threads

It must not be a way to hurt the agent: few connections at once, each closed after some seconds whatever it does, one
request each, and answers that are made anew once a second at most.
"""

from __future__ import annotations

import errno
import http.server
import json
import logging
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ebpftrace._version import version
from ebpftrace.agent.health import EXPORT_FAILING_S, judge
from ebpftrace.errors import CommandError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ebpftrace.agent.health import Health
    from ebpftrace.agent.snapshot import AgentSnapshot

logger = logging.getLogger("ebpftrace.agent.http")

DEFAULT_LISTEN = "127.0.0.1:9435"
"""Only this machine; the port is ebpf_exporter's, so that its scrape configuration goes on working."""

_MAX_PORT = 65_535
_CONNECTION_S = 5.0
_MAX_CONNECTIONS = 8
_CACHE_S = 1.0
_MAX_FORMATS = 8
_SYSTEMD_FD = 3
_BACKLOG = 16


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: an address and port, or (`fd`) a socket that is listening already."""

    host: str = ""
    port: int = 0
    fd: int | None = None

    def __str__(self) -> str:
        if self.fd is not None:
            return f"fd://{self.fd}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> Listen | None:
    """Return what `--listen` says; None = no endpoint.

    Args:
        text: "HOST:PORT", "[::1]:PORT", ":PORT" (all addresses), "fd://3" (a socket from the service manager), "none".

    Raises:
        ConfigError: it is none of these.
    """
    word = text.strip()
    if word.lower() == "none":
        return None
    if word.startswith("fd://") and word[5:].isdecimal() and int(word[5:]) >= _SYSTEMD_FD:
        return Listen(fd=int(word[5:]))
    host, colon, port = word.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    brackets_right = (":" in bare) == (host != bare) and "[" not in bare and "]" not in bare
    if not (colon and brackets_right and port.isascii() and port.isdecimal() and int(port) <= _MAX_PORT):
        raise ConfigError(
            f"--listen {text!r}: write HOST:PORT such as {DEFAULT_LISTEN}, [::1]:9435, :9435 for all addresses, "
            "fd://3 for a socket of the service manager's, or none"
        )
    return Listen(bare, int(port))


class MetricsServer:
    """Serves metrics and health until it is closed.

    Args:
        take: makes a snapshot of the agent; called from this server's threads.
        listen: where; text as `parse_listen` takes it, but not "none".
        export_failing_s: the exporter may fail this long before `/healthz` says so.
        connection_s: the longest that one connection may take.

    Attributes:
        port: the TCP port, also when the kernel chose it; 0 for a socket of another family.

    Raises:
        ConfigError: `listen` is no address.
        CommandError: the address cannot be listened on.
        UnsupportedError: prometheus_client is not installed.
    """

    def __init__(
        self,
        take: Callable[[], AgentSnapshot],
        listen: Listen | str = DEFAULT_LISTEN,
        *,
        export_failing_s: float = EXPORT_FAILING_S,
        connection_s: float = _CONNECTION_S,
    ) -> None:
        self._pages = _Pages(take, export_failing_s)
        place = parse_listen(listen) if isinstance(listen, str) else listen
        if place is None:
            raise ConfigError("--listen none: then there is no endpoint to make")
        self._server = _Server(_open(place), self._pages, connection_s)
        self._interval_s = min(0.5, connection_s / 5)
        self._thread: threading.Thread | None = None
        address = self._server.socket.getsockname()
        self.port: int = address[1] if isinstance(address, tuple) else 0

    def start(self) -> None:
        """Answer, by threads of its own."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(self._interval_s,), name="ebpftrace-http", daemon=True
        )
        self._thread.start()

    def stats(self) -> dict[str, int]:
        """Return what was answered, and what was turned away or cut off."""
        return {"answered": self._server.answered, "refused": self._server.refused, "cut_off": self._server.cut_off}

    def close(self) -> None:
        """Stop listening and cut off those who are connected; idempotent."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()
        self._server.cut_off_older(0.0)


def _open(listen: Listen) -> socket.socket:
    try:
        return _bind(listen) if listen.fd is None else _adopt(listen.fd)
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        hint = "choose another port with --listen; --listen none does without" if in_use else "see --listen"
        raise CommandError(f"cannot listen on {listen}: {error.strerror or error}; {hint}") from error


def _bind(listen: Listen) -> socket.socket:
    if not listen.host and socket.has_dualstack_ipv6():
        return socket.create_server(("", listen.port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    found = socket.getaddrinfo(listen.host or "0.0.0.0", listen.port, type=socket.SOCK_STREAM)  # noqa: S104  (":PORT")
    family, _, _, _, address = found[0]
    return socket.create_server((str(address[0]), listen.port), family=family, backlog=_BACKLOG)


def _adopt(fd: int) -> socket.socket:
    given = socket.socket(fileno=os.dup(fd))
    try:
        listening = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        listening = 0
    if not listening:
        given.close()
        raise OSError(errno.EINVAL, "it is no listening socket")
    return given


class _Pages:
    """The answers. Each is made once a second at most, whoever asks how often."""

    def __init__(self, take: Callable[[], AgentSnapshot], export_failing_s: float) -> None:
        from ebpftrace.agent.families import make_registry

        self._take = take
        self._export_failing_s = export_failing_s
        self._registry = make_registry(self._snapshot)
        self._lock = threading.Lock()
        self._taken: tuple[float, AgentSnapshot] | None = None
        self._rendered: dict[str, tuple[float, tuple[bytes, str]]] = {}

    def _snapshot(self) -> AgentSnapshot:
        """With the lock held."""
        now = time.monotonic()
        if self._taken is None or now - self._taken[0] >= _CACHE_S:
            self._taken = (now, self._take())
        return self._taken[1]

    def metrics(self, accept: str) -> tuple[bytes, str]:
        from ebpftrace.agent.families import render

        with self._lock:
            now = time.monotonic()
            known = self._rendered.get(accept)
            if known is None or now - known[0] >= _CACHE_S:
                if len(self._rendered) >= _MAX_FORMATS:
                    self._rendered.clear()
                known = (now, render(self._registry, accept))
                self._rendered[accept] = known
            return known[1]

    def health(self, *, alive_only: bool) -> tuple[int, bytes]:
        with self._lock:
            snapshot = self._snapshot()
        health = judge(snapshot, time.time(), export_failing_s=self._export_failing_s)
        well = health.alive if alive_only else health.healthy
        body = _health_body(snapshot, health, well=well)
        return (200 if well else 503), json.dumps(body, indent=2).encode() + b"\n"


def _health_body(snapshot: AgentSnapshot, health: Health, *, well: bool) -> dict[str, Any]:
    return {
        "status": "ok" if well else "unhealthy",
        "reasons": list(health.reasons),
        "version": version,
        "uptime_seconds": round(max(0.0, time.time() - snapshot.started_at), 1),
        "programs": {
            each.name: {"state": each.state} | ({"error": each.error} if each.error else {})
            for each in snapshot.programs
        },
        "export": {"queued_spans": snapshot.export.queued_spans, "last_error": snapshot.export.last_error},
    }


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request, and the connection is closed."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        path = urlsplit(self.path).path
        pages = self.server.pages
        if path == "/metrics":
            body, content_type = pages.metrics(self.headers.get("Accept", ""))
            self._answer(200, body, content_type)
        elif path in ("/healthz", "/livez"):
            code, body = pages.health(alive_only=path == "/livez")
            self._answer(code, body, "application/json")
        else:
            found = path == "/"
            body = b"ebpftrace agent: /metrics /healthz /livez\n"
            self._answer(200 if found else 404, body, "text/plain; charset=utf-8")

    do_HEAD = do_GET  # noqa: N815

    def version_string(self) -> str:
        """Return what the Server header says: not which Python this is."""
        return f"ebpftrace/{version}"

    def _answer(self, code: int, body: bytes, content_type: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.server.answered += 1

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
        logger.debug("%s: %s", self.client_address, format % args)


class _Server(http.server.ThreadingHTTPServer):
    """A thread for each of few connections, and an end for each of those."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listening: socket.socket, pages: _Pages, connection_s: float) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()  # the base class's own
        self.socket = listening
        self.pages = pages
        self._connection_s = connection_s
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        self.answered = self.refused = self.cut_off = 0

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Turn away whoever comes when there are enough; the base class closes the connection then."""
        with self._lock:
            if len(self._open) >= _MAX_CONNECTIONS:
                self.refused += 1
                return False
            self._open[request] = time.monotonic()
        request.settimeout(self._connection_s)
        return True

    def service_actions(self) -> None:
        """Called several times in the life of a connection."""
        self.cut_off_older(self._connection_s)

    def cut_off_older(self, seconds: float) -> None:
        """End connections that take longer; whoever is in recv() or send() on one gets out of it."""
        limit = time.monotonic() - seconds
        with self._lock:
            old = [connection for connection, since in self._open.items() if since <= limit]
            for connection in old:
                del self._open[connection]
                self.cut_off += 1
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError as error:  # gone already
                    logger.debug("a connection was gone before it was cut off: %s", error)

    def shutdown_request(self, request: Any) -> None:
        """End a connection, as its thread does when it is done."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Whoever is gone before the answer, or was cut off, is no news; a bug of ours is."""
        error = sys.exception()
        if isinstance(error, OSError):
            logger.debug("%s left before it was answered: %s", client_address, error)
        else:
            logger.error("a request could not be answered", exc_info=error)
