# SPDX-License-Identifier: Apache-2.0
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.viewer.trace import BACKWARDS, CYCLE, DUPLICATE, ORPHAN, Span, build_traces


def span(span_id, parent="", start=100, end=200, trace="t", **attributes):
    return Span(trace, span_id, parent, f"span {span_id}", "app", start, end, attributes)


def test_children_are_in_order_of_time():
    """A span's children follow their start, not the file."""
    (trace,) = build_traces([span("3", "1", 150), span("1"), span("2", "1", 120)])

    assert ["2", "3"] == [child.span_id for child in trace.root.children]


def test_span_without_its_parent_becomes_a_marked_root():
    """A missing parent costs no span, and the root says what it is."""
    (trace,) = build_traces([span("1"), span("2", "gone")])

    assert {"1": (), "2": (ORPHAN,)} == {root.span_id: root.defects for root in trace.roots}


def test_true_root_stands_for_the_trace_before_a_longer_orphan():
    """The root of a trace is a span without parent where there is one."""
    (trace,) = build_traces([span("1"), span("2", "gone", 0, 10_000)])

    assert "1" == trace.root.span_id


def test_circle_is_cut_once_and_keeps_its_tail():
    """Spans whose parents form a circle, and what hangs below them, are shown once each."""
    (trace,) = build_traces([span("1", "2"), span("2", "3"), span("3", "1"), span("4", "3", 50)])

    assert [CYCLE] == [defect for root in trace.roots for defect in root.defects]
    assert ["1", "2", "3", "4"] == sorted(found.span_id for root in trace.roots for found in root.walk())


def test_span_that_is_its_own_parent_is_a_root():
    """The smallest circle is cut too."""
    (trace,) = build_traces([span("1", "1")])

    assert (CYCLE,) == trace.root.defects
    assert [] == trace.root.children


def test_backwards_span_has_no_width_and_says_so():
    """A span that ends before it starts has a defect and duration zero, not a negative one."""
    (trace,) = build_traces([span("1", start=200, end=100)])

    assert ((BACKWARDS,), 0) == (trace.root.defects, trace.root.duration_ns)
    assert (200, 200) == trace.window


def test_duplicate_span_id_is_kept_and_marked():
    """A second span of the same id is shown beside the first."""
    (trace,) = build_traces([span("1"), span("2", "1"), span("2", "1", 150)])

    assert [(), (DUPLICATE,)] == [child.defects for child in trace.root.children]


def test_traces_come_slowest_first():
    """Traces are ordered by the duration of their root span."""
    traces = build_traces([span("1", trace="a"), span("1", trace="b", end=900)])

    assert ["b", "a"] == [trace.trace_id for trace in traces]


def test_span_without_start_does_not_stretch_the_window():
    """A start time of zero is left out of the window."""
    (trace,) = build_traces([span("1"), span("2", "1", 0, 150)])

    assert (100, 200) == trace.window


def test_breakdown_holds_positive_integers_only():
    """Zero, negative, boolean and text parts are not time."""
    attributes = {"ebpftrace.time.disk": 5, "ebpftrace.time.lock": 0, "ebpftrace.time.x": "7", "ebpftrace.time.y": True}
    one = Span("t", "1", "", "n", "", 0, 10, attributes)

    assert {"disk": 5} == one.breakdown


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 50), st.integers(0, 50)), max_size=25))
def test_every_span_is_in_exactly_one_tree(rows):
    """Whatever the parents are, no span is lost and none is shown twice."""
    spans = [span(str(own), str(parent) if parent else "", start, end) for own, parent, start, end in rows]
    traces = build_traces(spans)
    found = [below for trace in traces for root in trace.roots for below in root.walk()]

    assert len(spans) == len(found)
    assert {id(one) for one in spans} == {id(one) for one in found}
