# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.config import DecoderConfig
from ebpftrace.decoders import make_decoder
from ebpftrace.decoders.text import static_map, string
from ebpftrace.errors import ConfigError


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"python\0\0", "python"), (b"full", "full"), (b"a\0rubbish", "a"), (b"\0rubbish", None), (b"", None)],
)
def test_string(data, text):
    """A C string ends at its first NUL; an empty one is nothing."""
    assert text == string(data)


@given(st.binary())
def test_string_of_anything(data):
    """Any bytes are text, and none of it is a NUL."""
    assert "\0" not in (string(data) or "")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), st.binary())
def test_string_keeps_text(text, rubbish):
    """UTF-8 comes through as it is."""
    assert text == string(text.encode() + b"\0" + rubbish)


def test_static_map():
    """A value that is in the map is its text, another one says so."""
    decode = static_map({1: "one", "two": "2"})

    assert ("one", "2", "unknown:3") == (decode(1), decode("two"), decode(3))


def test_static_map_of_a_file():
    """The map comes from the program's file."""
    decode = make_decoder(DecoderConfig("static_map", {1: "one"}))

    assert "one" == decode(1)


def test_unknown_decoder():
    """A decoder that does not exist is a ConfigError that has those that do."""
    with pytest.raises(ConfigError, match=r"no decoder 'nothing'; there are argv, .*static_map"):
        make_decoder(DecoderConfig("nothing"))
