# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
import types

import pytest
from bcc_support import Bpf, Event, Kept

import ebpftrace.bcc
from ebpftrace.bcc.tables import claim, find_buffer, only_buffer, release, require_bpf, table_names
from ebpftrace.errors import ConfigError, UnsupportedError


def test_kinds():
    """Perf and ring buffers are found by name."""
    bpf = Bpf(ring=("ring", Event), perf=("perf", Event))

    assert ["ring", "perf"] == [find_buffer(bpf, name).kind for name in ("ring", "perf")]


def test_no_such_buffer():
    """A wrong name is an error with the right one."""
    with pytest.raises(ConfigError, match="has no buffer 'event': did you mean 'events'"):
        find_buffer(Bpf(), "event")
    with pytest.raises(ConfigError, match="has no buffer 'opens': its tables are: events"):
        find_buffer(Bpf(), "opens")


def test_other_table():
    """A table without records is refused, with what to declare."""
    with pytest.raises(ConfigError, match=r"'seen' is a Table \(map type 1\), .*BPF_RINGBUF_OUTPUT or BPF_PERF_OUTPUT"):
        find_buffer(Bpf(seen=("hash", None)), "seen")


def test_only_buffer():
    """The one buffer of a program needs no name; with none or several it does."""
    assert "events" == only_buffer(Bpf(events=("ring", Event), seen=("hash", None)))
    with pytest.raises(ConfigError, match="no ring or perf buffer"):
        only_buffer(Bpf(seen=("hash", None)))
    with pytest.raises(ConfigError, match="several buffers: a, b: name the one"):
        only_buffer(Bpf(a=("ring", Event), b=("perf", Event)))


def test_claim():
    """A buffer is read by one at a time: by us, by another reader, or by BCC."""
    bpf = Bpf()
    buffer = find_buffer(bpf, "events")
    claim(bpf, [buffer])
    with pytest.raises(ConfigError, match="'events' is read by another reader already"):
        claim(bpf, [buffer])
    release(bpf, ["events"])
    release(bpf, ["events"])
    claim(bpf, [buffer])
    release(bpf, ["events"])
    bpf["events"].open_perf_buffer(print)
    with pytest.raises(ConfigError, match=r"read by open_perf_buffer\(\) already: .*`callback`"):
        claim(bpf, [buffer])


def test_refused_reader_claims_nothing():
    """What fails for another reason leaves the buffer to the next."""
    bpf = Bpf()

    def fails(*_args, **_options):
        raise RuntimeError("no")

    bpf["events"].open_perf_buffer = fails
    with pytest.raises(RuntimeError):
        ebpftrace.bcc.spans(bpf, "events", Event, to=Kept(), callback=print)
    claim(bpf, [find_buffer(bpf, "events")])


@pytest.mark.parametrize("wrong", [None, "events", object()])
def test_no_program(wrong, monkeypatch):
    """What is no BPF object is refused by its type."""
    monkeypatch.delitem(sys.modules, "bcc", raising=False)

    with pytest.raises(ConfigError, match=f"{type(wrong).__qualname__!r} is no bcc.BPF"):
        require_bpf(wrong)


def test_other_module(monkeypatch):
    """An object of the other package of that name is refused as that."""
    monkeypatch.setitem(sys.modules, "bcc", types.ModuleType("bcc"))

    with pytest.raises(UnsupportedError, match="the package 'bcc' on PyPI is something else"):
        require_bpf(object())


def test_closed():
    """A closed program is refused."""
    bpf = Bpf()
    bpf.cleanup()

    with pytest.raises(ebpftrace.bcc.ClosedError, match="this BPF object is closed"):
        ebpftrace.bcc.spans(bpf, "events")


@pytest.mark.parametrize("own", [True, False])
def test_tables_of_the_library(monkeypatch, own):
    """Only BCC's own object is followed into its library: of another one, `module` is no address."""
    asked = []

    class Library(types.ModuleType):
        def __getattr__(self, name):
            asked.append(name)
            raise AttributeError(name)

    bcc = types.ModuleType("bcc")
    bcc.BPF = type("BPF", (Bpf,), {})
    monkeypatch.setitem(sys.modules, "bcc", bcc)
    monkeypatch.setitem(sys.modules, "bcc.libbcc", Library("bcc.libbcc"))

    assert ["events"] == table_names(bcc.BPF() if own else Bpf())
    assert own == ("lib" in asked)
