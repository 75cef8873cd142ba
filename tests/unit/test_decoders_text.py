# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.config import DecoderConfig
from ebpftrace.decoders import SkipRecord, make_decoder
from ebpftrace.decoders.text import regexp, string
from ebpftrace.errors import ConfigError


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"python\0\0", "python"),
        (b"full", "full"),
        (b"a\0rubbish", "a"),
        (b"\0rubbish", None),
        (b"", None),
        ("text", "text"),
        ("", None),
    ],
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


@pytest.mark.parametrize(
    ("patterns", "value", "text"),
    [
        (["^systemd-journal$", "^syslog-ng$"], "syslog-ng", "syslog-ng"),
        (["^(systemd).*$", "x"], "systemd-bananad", "systemd"),
        (["b", "(.*)"], "abc", "b"),  # the first that matches
        (["^(\\w+)-\\d+-(\\w+)$"], "a-1-b", "a b"),
        (["^foo-(.*)$|^bar-(.*)$"], "bar-x", "x"),
        (["^(?:a|b)c"], "bcd", "bc"),
        (["^1.$"], 12, "12"),
        (["^a.b"], b"a\xffb", "a\ufffdb"),
        (["^a(b?)"], "a", ""),
    ],
)
def test_regexp(patterns, value, text):
    """The first pattern that matches gives its groups, or all that it matched."""
    assert text == regexp(patterns)(value)


def test_regexp_that_filters():
    """Where no pattern matches there is no span."""
    with pytest.raises(SkipRecord):
        regexp(["^a", "b$"])("ba")


def test_make_decoder():
    """A decoder is made as the program's file says."""
    decode = make_decoder(DecoderConfig("static_map", {1: "one"}))

    assert "one" == decode(1)


def test_unknown_decoder():
    """A decoder that does not exist is a ConfigError that has those that do."""
    with pytest.raises(ConfigError, match=r"no decoder 'nothing'; there are argv, .*static_map"):
        make_decoder(DecoderConfig("nothing"))
