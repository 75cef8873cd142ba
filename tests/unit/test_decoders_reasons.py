# SPDX-License-Identifier: Apache-2.0
"""Reasons of drops and resets have the running kernel's names."""

from __future__ import annotations

import pytest

from ebpftrace.decoders import reasons
from ebpftrace.errors import UnsupportedError
from ebpftrace.kernel.btf import Btf, Field


class FakeBtf:
    """A kernel whose tracepoints tell these reasons; None where it has no such tracepoint."""

    def __init__(self, names):
        self._names = names

    def fields(self, record):
        """The fields of a tracepoint's record."""
        if record not in self._names:
            raise KeyError(record)
        return [Field("skbaddr", 8, 8, "unsigned"), Field("reason", 16, 4, "unsigned", names=self._names[record])]


@pytest.fixture
def kernel(monkeypatch):
    """Make the running kernel one of these."""

    def set_kernel(names):
        monkeypatch.setattr(Btf, "kernel", classmethod(lambda _: FakeBtf(names)))
        reasons._names.cache_clear()

    yield set_kernel
    reasons._names.cache_clear()


def test_names(kernel):
    """The prefix that all names of an enum share is left out; a number without a name stays one."""
    kernel(
        {
            "trace_event_raw_kfree_skb": {0: "SKB_NOT_DROPPED_YET", 3: "SKB_DROP_REASON_NO_SOCKET"},
            "trace_event_raw_tcp_send_reset": {2: "SK_RST_REASON_TCP_ABORT_ON_DATA"},
        }
    )

    assert ["NOT_DROPPED_YET", "NO_SOCKET", "unknown:9"] == [reasons.drop_reason(value) for value in (0, 3, 9)]
    assert ["TCP_ABORT_ON_DATA", "unknown:3"] == [reasons.reset_reason(value) for value in (2, 3)]


def test_a_kernel_without_reasons(kernel):
    """A kernel that tells no reasons gives their numbers."""
    kernel({"trace_event_raw_kfree_skb": None})

    assert ("unknown:3", "unknown:3") == (reasons.drop_reason(3), reasons.reset_reason(3))


def test_no_btf(monkeypatch):
    """Without kernel BTF, as where records are decoded elsewhere, too."""

    def none(_):
        raise UnsupportedError("kernel BTF", "there is none")

    monkeypatch.setattr(Btf, "kernel", classmethod(none))
    reasons._names.cache_clear()

    assert "unknown:3" == reasons.drop_reason(3)
    reasons._names.cache_clear()
