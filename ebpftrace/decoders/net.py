# SPDX-License-Identifier: Apache-2.0
"""Networks: addresses, names, interfaces, states."""

from __future__ import annotations

import socket

from ebpftrace.decoders.lookups import Cache
from ebpftrace.decoders.values import unsigned

_MAPPED = bytes(10) + b"\xff\xff"  # an IPv4 address as an IPv6 one

# include/net/tcp_states.h
_TCP_STATES = (
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
    "BOUND_INACTIVE",
)


def inet_ip(value: bytes) -> str:
    """An IPv4 or IPv6 address in network byte order; an IPv4 address in an IPv6 one is shown as the former."""
    if value.startswith(_MAPPED) and len(value) == 16:
        value = value[12:]
    if len(value) == 4:
        return socket.inet_ntop(socket.AF_INET, value)
    if len(value) == 16:
        return socket.inet_ntop(socket.AF_INET6, value)
    return "?" + value.hex()


def sockaddr(value: bytes) -> str | None:
    """A `struct sockaddr`: address and port, or the path of a Unix socket ("@" stands for the NUL of an abstract one).

    Nothing for an unnamed socket.
    """
    family = unsigned(value[:2])
    if family == socket.AF_INET and len(value) >= 8:
        return f"{inet_ip(value[4:8])}:{int.from_bytes(value[2:4], 'big')}"
    if family == socket.AF_INET6 and len(value) >= 24:
        return _inet6(value)
    if family == socket.AF_UNIX:
        return _path(value[2:])
    if family == socket.AF_UNSPEC:
        return None
    return f"unknown:{family}"


def _inet6(value: bytes) -> str:
    port = int.from_bytes(value[2:4], "big")
    address = inet_ip(value[8:24])
    if ":" not in address:
        return f"{address}:{port}"
    scope = unsigned(value[24:28])  # 0 when the field was cut before it
    return f"[{address}%{scope}]:{port}" if scope else f"[{address}]:{port}"


def _path(value: bytes) -> str | None:
    if value.startswith(b"\0"):
        name = value[1:].rstrip(b"\0")  # its real length is not in the struct
        return "@" + name.replace(b"\0", b"@").decode("utf-8", "replace") if name else None
    return value.partition(b"\0")[0].decode("utf-8", "replace") or None


def dname(value: bytes | str) -> str:
    """A domain name as DNS sends it (lengths and labels); what is none stays as it is."""
    data = value.encode() if isinstance(value, str) else value
    labels, position = [], 0
    while position < len(data) and data[position]:
        end = position + 1 + data[position]
        if data[position] > 63 or end > len(data):
            return data.rstrip(b"\0").decode("utf-8", "replace")
        labels.append(data[position + 1 : end])
        position = end
    return b".".join(labels).decode("utf-8", "replace") or "."


def tcp_state(value: int) -> str:
    """The state of a TCP socket."""
    return _TCP_STATES[value - 1] if 1 <= value <= len(_TCP_STATES) else f"unknown:{value}"


def _interface(index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except (OSError, OverflowError):
        return None


_interfaces: Cache[int, str] = Cache(_interface, found_s=10)


def ifname(value: int) -> str:
    """The interface of this network namespace that has the index."""
    return _interfaces.get(value) or f"unknown:{value}"
