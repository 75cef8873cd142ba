# SPDX-License-Identifier: Apache-2.0
"""The protocol between applications and the agent: whatever comes over the socket is a message, or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.context.registration import (
    MAX_HELLO,
    Hello,
    Programs,
    ProtocolError,
    Refused,
    Welcome,
    decode_answer,
    decode_hello,
    encode,
)

words = st.text(max_size=64)
programs = st.dictionaries(st.text(max_size=16), st.integers(0, 2**32 - 1), max_size=4)
hellos = st.builds(
    Hello, protocol=st.integers(0, 2**31), slots=st.integers(0, 2**31), token=st.text("0123456789abcdef", max_size=64)
)
answers = st.one_of(
    st.builds(Welcome, protocol=st.integers(0, 9), token=words, programs=programs, kept=st.booleans()),
    st.builds(Refused, reason=words, text=st.text(max_size=200)),
    st.builds(Programs, programs=programs),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@given(hellos)
def test_hello(hello):
    """A hello comes out as it went in."""
    assert hello == decode_hello(encode(hello))


@given(answers)
def test_answer(answer):
    """So does every answer."""
    assert answer == decode_answer(encode(answer))


@given(st.binary(max_size=MAX_HELLO + 10))
def test_bytes(data):
    """Bytes are a hello or a `ProtocolError`, nothing else."""
    try:
        found = decode_hello(data)
    except ProtocolError:
        return
    assert isinstance(found, Hello)


@given(st.dictionaries(st.sampled_from(["type", "protocol", "slots", "token", "library", "x"]), anything))
def test_json(members):
    """The same goes for JSON that looks like a hello."""
    data = json.dumps({"type": "hello"} | members).encode()
    try:
        found = decode_hello(data)
    except ProtocolError:
        return
    assert (members["protocol"], members["slots"]) == (found.protocol, found.slots)


@given(hellos, anything)
def test_newer(hello, value):
    """Members that are not known, of a newer version, are ignored."""
    data = json.dumps(json.loads(encode(hello)) | {"newer": value}).encode()

    if len(data) <= MAX_HELLO:
        assert hello == decode_hello(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[" * MAX_HELLO, b'{"type":"hello","x":' + b"[" * 400, b" " * (MAX_HELLO + 1), b'"hello"'],
    ids=["nothing", "empty", "deep", "deep inside", "long", "text"],
)
def test_no_hello(data):
    """What is nested deep, long, empty or something else is refused."""
    with pytest.raises(ProtocolError):
        decode_hello(data)
