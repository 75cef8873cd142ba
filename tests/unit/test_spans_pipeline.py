# SPDX-License-Identifier: Apache-2.0
"""Both pipelines: the same counters, rings that come and go, one line in the log."""

from __future__ import annotations

import logging

import pytest
from layouts import HEAD_BYTES, batch, clock, decoders, head, layout
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from ebpftrace.config.layout import Column
from ebpftrace.errors import ConfigError
from ebpftrace.spans.pipeline import NativePipeline, SdkPipeline
from ebpftrace.spans.plan import REASONS


class Both:
    """A pipeline of either sort, and the names of the spans that came out."""

    def __init__(self, kind, rings):
        self.out = []
        if kind == "sdk":
            self.pipeline = SdkPipeline(rings, lambda spans: self.out.extend((s.service, s.name) for s in spans))
        else:
            self.pipeline = NativePipeline(rings, self._put)

    def _put(self, chunks):
        for chunk in chunks:
            spans = ScopeSpans.FromString(chunk.payload).spans
            assert chunk.count == len(spans)
            self.out += [(chunk.service, span.name) for span in spans]

    def feed(self, *records):
        """Consume one batch."""
        self.pipeline.consume(batch(*records), clock())

    def counted(self):
        """What the programs' counters say, without zeros."""
        return {
            program: {"records": stats.records} | {reason: n for reason, n in stats.undecoded.items() if n}
            for program, stats in self.pipeline.stats().items()
        }


@pytest.fixture(params=["sdk", "native"])
def kind(request):
    """Either sort."""
    return request.param


def ring(name, program="made", **changes):
    """A ring of one sort of record."""
    return [layout(program=program, name=name, **changes)]


def test_rings(kind):
    """Records are read as their ring says, and counted for its program."""
    both = Both(kind, [ring("a"), ring("b", "other", service="db"), ring("c")])
    both.feed((0, head()), (1, head()), (2, head()), (2, head(trace_id=bytes(16))), (0, b""), (0, head()))

    assert [("", "a"), ("", "a"), ("", "c"), ("db", "b")] == sorted(both.out)
    assert {"made": {"records": 5, "no_trace_id": 1, "short": 1}, "other": {"records": 1}} == both.counted()
    assert (3, 1) == (both.pipeline.stats()["made"].spans, both.pipeline.stats()["other"].spans)


def test_all_reasons_are_there(kind):
    """A counter is there before it counts anything."""
    stats = Both(kind, [ring("a")]).pipeline.stats()["made"]

    assert (0, dict.fromkeys(REASONS, 0)) == (stats.records, dict(stats.undecoded))


def test_nothing_waits(kind):
    """After a batch all its spans have been handed on."""
    both = Both(kind, [ring("a")])
    for turn in range(1, 4):
        both.feed(head())
        assert turn == len(both.out)
    both.pipeline.flush_pending()
    assert 3 == len(both.out)


def test_replace(kind):
    """Rings come, change and go between two batches; a program's counters go on."""
    both = Both(kind, {3: ring("a"), 4: ring("b", "other")})
    both.feed((3, head()), (4, head()), (4, b""))
    both.pipeline.replace({3: ring("changed"), 9: ring("c", "new")})
    both.feed((3, head()), (9, head()), (4, head()))

    assert ["a", "b", "c", "changed"] == sorted(name for _, name in both.out)
    assert {"made": {"records": 2}, "new": {"records": 1}} == both.counted()
    assert 1 == both.pipeline.stray
    both.pipeline.replace({12: ring("b again", "other")})
    assert {"other": {"records": 2, "short": 1}} == both.counted()


def test_two_rings_of_a_program_that_reloads(kind):
    """While the new ring is there and the old one not gone yet, both count."""
    both = Both(kind, {0: ring("old")})
    both.feed((0, head()))
    both.pipeline.replace({0: ring("old"), 1: ring("new")})
    both.feed((0, head()), (1, head()))
    both.pipeline.replace({1: ring("new")})
    both.feed((1, head()))

    assert {"made": {"records": 4}} == both.counted()


def test_empty_ring(kind):
    """A ring without layouts is one that nobody described."""
    both = Both(kind, {0: ring("a"), 1: []})
    both.feed((1, head()))

    assert (1, {"made": {"records": 0}}) == (both.pipeline.stray, both.counted())


def test_impossible(kind):
    """Rings that cannot be described are a ConfigError, and the old ones stay."""
    both = Both(kind, {0: ring("a")})
    broken = layout(Column("f", "", "key", HEAD_BYTES, 1, "raw", None, decoders("nothing")))
    with pytest.raises(ConfigError, match="label 'f'"):
        both.pipeline.replace({0: ring("b"), 1: [broken]})
    both.feed(head())

    assert [("", "a")] == both.out


def test_one_line(kind, caplog):
    """The first record that fails is in the log, with its text; also after a reload no other one is."""
    column = Column("trace", "trace_id", "", 0, 8, "char")
    both = Both(kind, [[layout(column, head=())]])
    with caplog.at_level(logging.WARNING, "ebpftrace.spans"):
        both.feed(b"anything", b"whatever")
        both.pipeline.replace([[layout(column, head=(), name="other")]])
        both.feed(b"anything")

    assert {"made": {"records": 3, "failed": 3}} == both.counted()
    [line] = caplog.messages
    assert "program 'made'" in line
    assert "'anything' is no id" in line


def test_failing_consumer(kind):
    """What the consumer raises comes out; the next batch is taken as if nothing had been."""
    calls = []

    def once(_):
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError

    pipeline = (SdkPipeline if kind == "sdk" else NativePipeline)([ring("a")], once)
    with pytest.raises(ZeroDivisionError):
        pipeline.consume(batch(head()), clock())
    pipeline.consume(batch(head()), clock())
    assert 2 == len(calls)
