# SPDX-License-Identifier: Apache-2.0
"""What an application and the agent say to each other over the agent's socket: docs/reference/registration.md.

One message is one packet of a SOCK_SEQPACKET socket, in JSON: so there are no lengths to get wrong, descriptors belong
to a message, and strace shows what was said. It is a few messages in the life of a process; their cost does not count.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ebpftrace.errors import EbpftraceError

PROTOCOL = 1
"""Counts changes that the other side has to know of. New members with a default are none."""

MAX_HELLO = 512
"""Bytes of what an application may send."""

MAX_ANSWER = 16_384
"""Bytes of what the agent may send."""

DEFAULT_SOCKET = "/run/ebpftrace/agent.sock"
"""Where an agent listens that was not told otherwise."""

TABLE_FDS = 2
"""Descriptors that come with a `Welcome`: the slots, the thread lines."""

_Short = Annotated[str, msgspec.Meta(max_length=64)]


class ProtocolError(EbpftraceError):
    """What came over the socket is no message of this protocol."""


class Hello(msgspec.Struct, frozen=True, tag="hello", tag_field="type"):
    """The first and only message of an application.

    Args:
        protocol: `PROTOCOL`.
        slots: of a table, as the application was built.
        token: of the last `Welcome`, when this process has a table already; "" at its first registration.
        library: version, for the agent's log.
    """

    protocol: int
    slots: int
    token: _Short = ""
    library: _Short = ""


class Welcome(msgspec.Struct, frozen=True, tag="welcome", tag_field="type"):
    """The application is registered for as long as it keeps the connection.

    Args:
        protocol: the agent's.
        token: proves, to the agent or its successor, that the table is this process's.
        kept: the slots are those of the token's table, with what is published there; the lines are new.
        programs: those that act, and each one's bit of a context's mask.
        agent: its version.
    """

    protocol: int
    token: _Short
    programs: dict[str, int]
    kept: bool = False
    agent: _Short = ""


class Refused(msgspec.Struct, frozen=True, tag="refused", tag_field="type"):
    """The application is not registered, and the agent closes the connection.

    Args:
        reason: a word, as in the agent's metrics.
        text: what it means here, and what to do about it.
    """

    reason: str
    text: str


class Programs(msgspec.Struct, frozen=True, tag="programs", tag_field="type"):
    """Other programs act from now on: the agent was reloaded."""

    programs: dict[str, int]


Answer = Welcome | Refused | Programs

_hello = msgspec.json.Decoder(Hello)
_answer = msgspec.json.Decoder(Answer)
_encoder = msgspec.json.Encoder()


def encode(message: Hello | Answer) -> bytes:
    """Return a message as the bytes of one packet."""
    return _encoder.encode(message)


def decode_hello(data: bytes) -> Hello:
    """Return what an application said.

    Raises:
        ProtocolError: it is no hello.
    """
    if len(data) > MAX_HELLO:
        raise ProtocolError(f"a hello has {MAX_HELLO} bytes at most")
    hello: Hello = _decode(_hello, data)
    return hello


def decode_answer(data: bytes) -> Answer:
    """Return what the agent said.

    Raises:
        ProtocolError: it is none of its messages.
    """
    answer: Answer = _decode(_answer, data)
    return answer


def _decode(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:  # it recurses into unknown members
        raise ProtocolError(f"no message of protocol {PROTOCOL}: {error}") from None
