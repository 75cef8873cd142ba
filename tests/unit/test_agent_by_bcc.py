# SPDX-License-Identifier: Apache-2.0
"""Which loader a program of the agent gets, and what is said of one that gets none."""

from __future__ import annotations

import pytest

from ebpftrace.agent import loader
from ebpftrace.agent.program import Source
from ebpftrace.agent.startup import SelfTrace
from ebpftrace.errors import UnsupportedError


@pytest.fixture
def no_btf(monkeypatch):
    """A kernel without BTF."""

    def refuse():
        raise UnsupportedError("kernel BTF", "/sys/kernel/btf/vmlinux cannot be read: No such file or directory")

    monkeypatch.setattr(loader.Btf, "kernel", refuse)


@pytest.fixture
def by_bcc(monkeypatch):
    """The reasons of what BCC loads."""
    reasons = []
    monkeypatch.setattr(loader, "load_by_bcc", lambda source, trace, reason: reasons.append((source.stem, reason)))
    return reasons


def load(tmp_path, **what):
    """Load a program that has `what`."""
    source = Source("mine-trace", tmp_path / "mine-trace.yaml", "tracing: {}", **{"data": b"", **what})
    return loader.Loader(lambda: None, 4096).load(source, SelfTrace("test"))


def test_no_btf(tmp_path, no_btf, by_bcc):
    """Without BTF, BCC loads what has a source for it, whether or not there is an object."""
    load(tmp_path, data=b"an object", bcc="int x;")

    assert [
        ("mine-trace", "the kernel has no BTF: /sys/kernel/btf/vmlinux cannot be read: No such file or directory")
    ] == by_bcc


def test_needs_btf(tmp_path, no_btf, by_bcc):
    """Without BTF and without such a source, the error says what is missing and both ways to mend it."""
    with pytest.raises(UnsupportedError) as caught:
        load(tmp_path, data=b"an object")

    assert str(caught.value).startswith("kernel BTF, which mine-trace.bpf.o needs, is not available: /sys/kernel/btf")
    assert "CONFIG_DEBUG_INFO_BTF=y" in caught.value.hint
    assert "mine-trace.bcc.c" in caught.value.hint
    assert [] == by_bcc


@pytest.mark.parametrize("same", ["data", "bcc", "overrides"])
def test_same_code(tmp_path, same):
    """What is loaded, by whichever loader, and the knobs of the command line tell one program from another."""
    values = {"data": b"x", "bcc": "y", "overrides": (("a", "1"),)}
    other = values | {same: type(values[same])()}
    first, second = (Source("mine", tmp_path, text, **each) for text, each in (("", values), ("other", other)))

    assert first.same_code(Source("mine", tmp_path, "changed", **values))
    assert not first.same_code(second)
