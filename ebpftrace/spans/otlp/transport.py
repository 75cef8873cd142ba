# SPDX-License-Identifier: Apache-2.0
"""What the sender asks of a transport, and what it gets for an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    from ebpftrace.spans.otlp.settings import OtlpSettings


_LONGEST = 300  # of what a server says, in characters


class Answer(msgspec.Struct, frozen=True):
    """What became of one request.

    Args:
        verdict: "accepted", "again" (the same request may succeed later) or "refused" (it never will).
        text: why not; of an accepted request, what the server remarked.
        rejected: spans of an accepted request that the server did not take.
        wait_s: how long the server wants to be left alone; None = it did not say.
        reached: the server may have seen the request, so that the request itself may be what it does not like.
    """

    verdict: Literal["accepted", "again", "refused"]
    text: str = ""
    rejected: int = 0
    wait_s: float | None = None
    reached: bool = True


class Transport(Protocol):
    """Carries requests; used by one thread at a time, but for `close`."""

    def prepare(self, request: bytes) -> bytes:
        """Compress, once for all attempts."""

    def send(self, body: bytes, timeout_s: float) -> Answer:
        """Make one attempt, of `timeout_s` (inf = no limit) at most. Never raises for what a server or network does."""

    def close(self) -> None:
        """Give connections back; where the protocol can, end the request that another thread waits for."""


def one_line(text: str) -> str:
    """Return what a server said as it may stand in a line of the log: short, without control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text[:_LONGEST]).split())


def open_transport(settings: OtlpSettings) -> Transport:
    """Make the transport of these settings. Reads certificates; connects at the first request, not here.

    Raises:
        ConfigError: a certificate or key cannot be read.
        UnsupportedError: the Python package of the protocol is not installed.
    """
    if settings.protocol == "grpc":
        from ebpftrace.spans.otlp.grpc_client import GrpcTransport

        return GrpcTransport(settings)
    from ebpftrace.spans.otlp.http_client import HttpTransport

    return HttpTransport(settings)
