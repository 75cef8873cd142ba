# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.agent import privileges
from ebpftrace.agent.privileges import AUTO, NAMES, mask_of, names_of, parse_keep
from ebpftrace.errors import ConfigError, UnsupportedError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", AUTO),
        ("all", None),
        ("none", frozenset()),
        ("cap_bpf", frozenset({"CAP_BPF"})),
        ("CAP_BPF, perfmon", frozenset({"CAP_BPF", "CAP_PERFMON"})),
    ],
)
def test_keep(text, expected):
    """What to keep is a word, or names in any of the usual spellings."""
    assert expected == parse_keep(text)


@pytest.mark.parametrize("text", ["", ",", "cap_bfp", "bpf,everything"])
def test_keep_wrong(text):
    """A name that is none is an error that says what may be written."""
    with pytest.raises(ConfigError, match=r"--capabilities-keep .*write auto, all, none, or names"):
        parse_keep(text)


def test_numbers():
    """The list of names is in the kernel's order."""
    assert [0, 8, 21, 34, 38, 39, 40] == [
        NAMES.index(f"CAP_{name}")
        for name in ("CHOWN", "SETPCAP", "SYS_ADMIN", "SYSLOG", "PERFMON", "BPF", "CHECKPOINT_RESTORE")
    ]


@given(st.sets(st.sampled_from(NAMES)))
def test_masks(names):
    """Names and bits are two forms of one thing."""
    assert names == set(names_of(mask_of(names)))


def test_unknown_bit():
    """A capability that is newer than the list is shown by its number."""
    assert ("CAP_CHOWN", "CAP_50") == names_of(1 | 1 << 50)


def test_other_threads():
    """With another thread running nothing is given up: it would keep what it has, and the error names it."""
    before = privileges.read_capabilities()
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        with pytest.raises(UnsupportedError, match="other thread"):
            privileges.reduce(parse_keep("auto"))
    finally:
        end.set()
        other.join()

    assert before == privileges.read_capabilities()


def test_all(caplog):
    """With "all" nothing changes."""
    before = privileges.read_capabilities()
    kept = privileges.reduce(parse_keep("all"))

    assert before == privileges.read_capabilities()
    assert names_of(before.permitted) == kept.permitted


@pytest.mark.parametrize(
    ("permitted", "expected"),
    [(("CAP_BPF", "CAP_PERFMON"), True), (("CAP_SYS_ADMIN",), True), (("CAP_BPF",), False), ((), False)],
)
def test_can_load(permitted, expected):
    """A reload is possible with the capabilities that loading takes."""
    assert expected == privileges.Privileges(permitted, ()).can_load
