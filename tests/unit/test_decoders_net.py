# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.decoders.net import dname, ifname, inet_ip, sockaddr, tcp_state


def family(number):
    return number.to_bytes(2, sys.byteorder)


V6 = socket.inet_pton(socket.AF_INET6, "fe80::1")
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:10.1.2.3")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\1\2\3\4", "1.2.3.4"),
        (V6, "fe80::1"),
        (MAPPED, "10.1.2.3"),
        (bytes(16), "::"),
        (b"\1\2\3", "?010203"),
        (b"", "?"),
    ],
)
def test_inet_ip(data, text):
    """4 and 16 bytes are an address; a mapped one is that of IPv4."""
    assert text == inet_ip(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (family(socket.AF_INET) + b"\0\x50\1\2\3\4" + bytes(8), "1.2.3.4:80"),
        (family(socket.AF_INET6) + b"\1\xbb" + bytes(4) + bytes(15) + b"\1" + bytes(4), "[::1]:443"),
        (family(socket.AF_INET6) + b"\1\xbb" + bytes(4) + V6 + (2).to_bytes(4, sys.byteorder), "[fe80::1%2]:443"),
        (family(socket.AF_INET6) + b"\1\xbb" + bytes(4) + V6, "[fe80::1]:443"),
        (family(socket.AF_INET6) + b"\1\xbb" + bytes(4) + MAPPED, "10.1.2.3:443"),
        (family(socket.AF_UNIX) + b"/run/x.sock\0rubbish", "/run/x.sock"),
        (family(socket.AF_UNIX) + b"\0abstract\0\0", "@abstract"),
        (family(socket.AF_UNIX) + bytes(108), None),
        (family(socket.AF_UNSPEC) + bytes(26), None),
        (family(socket.AF_INET) + b"\0\x50", "unknown:2"),
        (family(socket.AF_INET6) + bytes(20), "unknown:10"),
        (family(99) + bytes(26), "unknown:99"),
    ],
)
def test_sockaddr(data, text):
    """An address says itself and its port, a Unix socket its path."""
    assert text == sockaddr(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "."),
        (bytes(8), "."),
        (b"\3com", "com"),
        (b"\7example\3com\0rubbish", "example.com"),
        ("\7example\3com", "example.com"),
        (b"\5com", "\5com"),
        (b"\5com\0", "\5com"),
        (b"\xc0\x0c", "\ufffd\x0c"),
        (b"\2\xff\xfe\0", "\ufffd\ufffd"),
    ],
)
def test_dname(data, text):
    """Labels are joined by dots; what is no domain name stays as it is."""
    assert text == dname(data)


@given(st.lists(st.from_regex(r"\A[a-z0-9-]{1,63}\Z"), max_size=4), st.binary(max_size=4))
def test_dname_of_any_host(labels, rubbish):
    """Every host name comes out again, whatever follows it."""
    data = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0" + rubbish

    assert (".".join(labels) or ".") == dname(data)


@pytest.mark.parametrize(
    ("value", "text"), [(1, "ESTABLISHED"), (7, "CLOSE"), (13, "BOUND_INACTIVE"), (0, "unknown:0"), (14, "unknown:14")]
)
def test_tcp_state(value, text):
    """States have the kernel's names."""
    assert text == tcp_state(value)


def test_ifname():
    """An interface of this network namespace has its name; what is none says so."""
    index, name = socket.if_nameindex()[0]

    assert name == ifname(index)
    assert "unknown:0" == ifname(0)
    assert f"unknown:{1 << 40}" == ifname(1 << 40)
