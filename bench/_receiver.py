# SPDX-License-Identifier: Apache-2.0
"""An OTLP/HTTP receiver that only counts: a process of its own, so that it is not in the agent's figures."""

from __future__ import annotations

import multiprocessing
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = 0x0A, 0x12, 0x12  # tags of the three messages within each other
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"


class Receiver:
    """Listens on loopback until it is closed."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._spans = multiprocessing.Value("Q", 0, lock=False)
        self._bytes = multiprocessing.Value("Q", 0, lock=False)
        self._process = multiprocessing.Process(target=_serve, args=(listener, self._spans, self._bytes), daemon=True)
        self._process.start()
        listener.close()

    @property
    def spans(self) -> int:
        """How many spans have arrived."""
        return self._spans.value

    @property
    def bytes(self) -> int:
        """How many bytes of requests have arrived."""
        return self._bytes.value

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.join()


def _serve(listener: socket.socket, spans: Any, size: Any) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            while (length := _head(stream)) is not None:
                body = stream.read(length)
                spans.value += count_spans(body)
                size.value += length
                connection.sendall(_OK)


def _head(stream: BinaryIO) -> int | None:
    length = None
    for line in iter(stream.readline, b""):
        if line == b"\r\n":
            return length
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return None


def count_spans(request: bytes) -> int:
    """Count the spans of an ExportTraceServiceRequest, by skipping from one to the next."""
    count = 0
    for start, end in _fields(request, 0, len(request), _RESOURCE_SPANS):
        for first, last in _fields(request, start, end, _SCOPE_SPANS):
            count += sum(1 for _ in _fields(request, first, last, _SPANS))
    return count


def _fields(data: bytes, position: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    while position < end:
        tag = data[position]
        position += 1
        length = shift = 0
        while True:
            byte = data[position]
            position += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        if tag == wanted:
            yield position, position + length
        position += length
