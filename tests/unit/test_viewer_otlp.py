# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.viewer.otlp import TraceFileError, load, parse
from ebpftrace.viewer.trace import build_traces

DATA = Path(__file__).parent.parent / "data"


def request(**changes):
    span = {
        "traceId": "0" * 31 + "1",
        "spanId": "0" * 15 + "2",
        "name": "work",
        "startTimeUnixNano": "1000",
        "endTimeUnixNano": "2000",
    }
    span.update(changes)
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def line(**changes):
    return json.dumps(request(**changes)).encode() + b"\n"


def test_lines_of_several_services_become_one_trace():
    """Each line is one request; spans of all lines join by their trace id."""
    document = load(str(DATA / "viewer_report.jsonl"))
    traces = build_traces(document.spans)

    assert 3 == len(traces)
    assert "GET /report" == traces[0].root.name
    assert {"report-api", "postgres", "kernel"} == {span.service for span in traces[0].spans}
    assert [] == document.notes


def test_pretty_printed_document_is_read():
    """One document over many lines is read, with upper-case ids, number times and every attribute type."""
    (span,) = load(str(DATA / "viewer_pretty.json")).spans

    assert ("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174") == (span.trace_id, span.span_id)
    assert 10**9 == span.duration_ns
    assert "no stock" == span.error
    expected = {"items": 3, "gift": True, "total": 9.5, "tags": ("a", 2), "who": {"id": 7}, "empty": None}
    assert expected == span.attributes


def test_several_pretty_documents_in_a_row_are_read():
    """Documents concatenated by tools such as jq are all read."""
    text = json.dumps(request(), indent=2) + "\n" + json.dumps(request(spanId="0" * 15 + "3"), indent=2)

    assert 2 == len(parse(text.encode().splitlines(keepends=True)).spans)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "empty"),
        ([b"\n", b"  \n"], "empty"),
        ([b"{}\n"], "no spans"),
        ([b"hello\n"], "line 1: not JSON"),
        ([line(), b"oops\n", line()], "line 2: not JSON"),
        ([b"{\n", b'  "resourceSpans": [\n', b"    oops\n"], "line 3: not JSON"),
        ([line(), b"[1]\n"], "line 2: JSON, but not OTLP: expected an object, found a number"),
        ([b'{"data": []}\n'], "line 1: JSON, but not an OTLP trace: no 'resourceSpans', only 'data'"),
        ([b'{"resourceSpans": {}}\n'], "no spans"),
        ([b'{"resourceSpans": 3}\n'], "line 1: 'resourceSpans' is a number, not a list"),
        ([line(), line(traceId="W4/v95gDgQPSabYzgT/GDA==")], "line 2: 'traceId' must be 32 hex digits"),
        ([line(spanId="0" * 16)], "'spanId' must be 16 hex digits, not all zero"),
        ([line(startTimeUnixNano="soon")], "'startTimeUnixNano' must be an integer"),
        ([line(endTimeUnixNano=-1)], "'endTimeUnixNano' is not a time"),
        ([line(attributes=[{"key": "n", "value": {"intValue": True}}])], "'n' must be an integer"),
        ([b"[" * 100_000 + b"\n"], "nested too deeply"),
        ([b'{"a": ' + b"9" * 5000 + b"}\n"], "line 1: not JSON"),
    ],
)
def test_bad_input_is_told_with_its_line(lines, message):
    """What is not OTLP JSON raises TraceFileError that says where and what."""
    with pytest.raises(TraceFileError) as caught:
        parse(lines)

    assert message in str(caught.value)


def test_missing_file_is_told():
    """A file that is not there is a TraceFileError, not an OSError."""
    with pytest.raises(TraceFileError, match="No such file"):
        load("/nonexistent/trace.jsonl")


def test_line_cut_off_at_the_end_is_left_out_with_a_note():
    """A last line without its end costs only itself, and is not left out silently."""
    document = parse([line(), line()[:40]])

    assert 1 == len(document.spans)
    assert ["line 2 is cut off and was left out"] == document.notes


def test_other_signals_are_counted():
    """Metrics and logs between traces are left out and counted."""
    document = parse([b'{"resourceMetrics": []}\n', line()])

    assert 1 == len(document.spans)
    assert ["1 request(s) of metrics, logs or profiles were left out"] == document.notes


def test_invalid_utf8_is_replaced_and_told():
    """A bad byte in a name costs neither the span nor the reader's knowledge of it."""
    document = parse([line(name="caf?").replace(b"caf?", b"caf\xe9")])

    assert "caf\N{REPLACEMENT CHARACTER}" == document.spans[0].name
    assert "not UTF-8 on line(s) 1" in document.notes[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = ("traceId", "spanId", "parentSpanId", "name", "startTimeUnixNano", "endTimeUnixNano")


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_arbitrary_bytes_raise_only_the_defined_error(lines):
    """Whatever bytes come, the parser answers with TraceFileError or spans."""
    try:
        parse(lines)
    except TraceFileError:
        return


@given(
    JSON, st.sampled_from(["resourceSpans", "scopeSpans", "spans", "span", "attributes", "value", "events", "status"])
)
def test_arbitrary_json_anywhere_raises_only_the_defined_error(value, place):
    """Arbitrary JSON in any place of a request is shown or is a TraceFileError."""
    body = {
        "resourceSpans": {"resourceSpans": value},
        "scopeSpans": {"resourceSpans": [{"resource": value, "scopeSpans": value}]},
        "spans": {"resourceSpans": [{"scopeSpans": [{"spans": value}]}]},
        "span": {"resourceSpans": [{"scopeSpans": [{"spans": [value]}]}]},
        "attributes": request(attributes=value),
        "value": request(attributes=[{"key": "k", "value": value}]),
        "events": request(events=value),
        "status": request(status=value),
    }[place]
    try:
        document = parse([json.dumps(body).encode()])
    except TraceFileError:
        return
    build_traces(document.spans)


@given(st.sampled_from(KEYS), JSON)
def test_arbitrary_json_in_a_field_raises_only_the_defined_error(key, value):
    """Arbitrary JSON in any field of a span is shown or is a TraceFileError."""
    try:
        parse([line(**{key: value})])
    except TraceFileError:
        return
