# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import struct

import pytest

from ebpftrace.decoders.numbers import boolean, floating, static_map


@pytest.mark.parametrize(
    ("value", "truth"), [(b"\0\0", False), (b"\0\1", True), (0, False), (-1, True), (0.0, False), (0.5, True)]
)
def test_bool(value, truth):
    """Anything that is not zero is true."""
    assert truth is boolean(value)


@pytest.mark.parametrize(
    ("value", "number"), [(struct.pack("=f", 0.5), 0.5), (struct.pack("=d", -1e300), -1e300), (3, 3.0), (0.25, 0.25)]
)
def test_float(value, number):
    """A float or double is read as it lies in memory; other numbers become one."""
    assert number == floating(value)
    assert isinstance(floating(value), float)


def test_float_that_is_none():
    """A float that is not a number stays one that is not."""
    assert math.isnan(floating(b"\xff" * 8))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "one"), ("1", "one"), (True, "one"), ("two", "2"), (3, "unknown:3"), ("", "unknown:"), (0, "")],
)
def test_static_map(value, text):
    """A value that is in the map, as a number or as decimal text, is its text; another one says so."""
    assert text == static_map({1: "one", "two": "2", "0": ""})(value)


def test_static_map_that_allows_others():
    """A value that is not in the map may be allowed to stay, as text."""
    decode = static_map({1: "one"}, allow_unknown=True)

    assert ("one", "2", "x") == (decode(1), decode(2), decode("x"))
