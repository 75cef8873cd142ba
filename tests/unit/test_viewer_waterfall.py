# SPDX-License-Identifier: Apache-2.0
import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpftrace.viewer import Options, Span, Theme, build_traces, choose_theme, load, render, render_list
from ebpftrace.viewer.text import cell_width

MS = 1_000_000
TIMES = "\N{MULTIPLICATION SIGN}"
REPORT = Path(__file__).parent.parent / "data" / "viewer_report.jsonl"
SGR = re.compile(r"\x1b\[[0-9;]*m")


def span(span_id, name, parent="", start=0, end=100, *, error=None, **attributes):
    return Span("t", str(span_id), str(parent), name, "app", start * MS + 1, end * MS + 1, attributes, error)


def kernel(span_id, name, parent, start, end, **attributes):
    made = span(span_id, name, parent, start, end)
    made.attributes = {"ebpftrace.program": "sched", **attributes}
    return made


def show(spans, theme=None, **options):
    (trace,) = build_traces(spans)
    return list(render(trace, Options(**{"verdict": False, "width": 80, **options}), theme))


def row(lines, text):
    (found,) = [line for line in lines if text in line]
    return found


def test_bars_are_to_scale():
    """A span of the second quarter of the window covers the second quarter of its bar area."""
    lines = show([span(1, "root"), span(2, "child", 1, 25, 50)])
    whole, part = row(lines, "root  app  "), row(lines, "child")
    begin, cells = whole.index("█"), whole.count("█")

    assert abs(part.index("█") - begin - cells / 4) <= 1
    assert abs(part.count("█") - cells / 4) <= 1


def test_kernel_spans_are_thin_marked_and_say_why():
    """A kernel span has its marker, cause, system call and waker, and a thin bar."""
    waker = {"ebpftrace.sched.syscall": "futex", "ebpftrace.sched.waker.pid": 7, "ebpftrace.sched.waker.comm": "gc"}
    line = row(show([span(1, "root"), kernel(2, "run_queue", 1, 10, 60, **waker)], width=120), "⚙")

    assert "⚙ run queue futex ← gc 7" in line
    assert "━━━" in line
    assert "█" not in line


def test_event_without_width_is_a_tick_at_its_time():
    """A zero-width span is one mark, in the middle for the middle, and has no duration."""
    lines = show([span(1, "root"), kernel(2, "sched_wakeup", 1, 50, 50)])
    line, whole = row(lines, "sched_wakeup"), row(lines, "root  app  ")

    assert abs(line.index("◆") - whole.index("█") - whole.count("█") / 2) <= 1
    assert " ms" not in line


def test_runs_of_small_kernel_spans_fold_and_large_ones_do_not():
    """Many events of one name become one row with their number; a wait that matters keeps its own."""
    events = [kernel(10 + i, "sched_switch", 1, i, i) for i in range(40)]
    waits = [kernel(100 + i, "disk", 1, i, i + 1) for i in range(5)] + [kernel(99, "disk", 1, 50, 90)]
    lines = show([span(1, "root"), *events, *waits])

    assert f"sched_switch {TIMES}40" in "\n".join(lines)
    assert f"sched_switch {TIMES}40 " in row(lines, "sched_switch")
    assert [f"disk {TIMES}5", "disk"] == [re.split(r"⚙ |  ", line)[1] for line in lines if "⚙ disk" in line]
    assert ["5 ms", "40 ms"] == [re.search(r"\d+ ms", line)[0] for line in lines if "⚙ disk" in line]


def test_no_fold_gives_each_span_a_row():
    """Without folding nothing is summed up."""
    events = [kernel(10 + i, "sched_switch", 1, i, i) for i in range(40)]

    assert 40 == sum("⚙ sched_switch" in line for line in show([span(1, "root"), *events], fold=False))


def test_too_many_rows_fold_further_and_account_for_every_span():
    """With few rows, short spans are summed up; all spans are in some row."""
    spans = [span(1, "root"), *(span(i, f"op {i}", 1, i % 90, i % 90 + 1 + i % 7) for i in range(2, 300))]
    lines = show(spans, max_rows=20)
    shown = sum("op " in line for line in lines)
    (more,) = [int(found[1]) for line in lines if (found := re.search(r"(\d+) more spans", line))]

    assert shown < 20
    assert 299 == 1 + shown + more


def test_rows_that_do_not_fit_are_counted():
    """Where folding is off, what was cut off is counted."""
    lines = show([span(1, "root"), *(span(i, "op", 1) for i in range(2, 50))], fold=False, max_rows=10)

    assert any("39 more spans: --max-rows 0 shows all" in line for line in lines)


def test_breakdown_names_shares_largest_first():
    """The line below a span holds its parts, largest first, with the stacked bar as long as the span's."""
    times = {"ebpftrace.time.on_cpu": 20 * MS, "ebpftrace.time.throttled": 70 * MS, "ebpftrace.time.disk": 10 * MS}
    lines = show([span(1, "root", **times)], width=120)
    line = row(lines, "throttled 70 % (70 ms) · on CPU 20 % · disk 10 %")
    whole = row(lines, "root  app  ")
    cells, bar = whole.count("█"), line[whole.index("█") :]

    assert [cells * 7 // 10, cells // 5, cells // 10] == pytest.approx([bar.count(letter) for letter in "tCd"], abs=2)


def test_breakdown_of_a_short_span_is_left_out_unless_asked_for():
    """Spans below 1 % of the trace have no breakdown line but with `all`; none have with `none`."""
    tiny = span(2, "tiny", 1, 0, 0)
    tiny.end_ns += 500_000
    tiny.attributes["ebpftrace.time.lock"] = 500_000
    spans = [span(1, "root"), tiny]

    assert [0, 1, 0] == [
        sum("lock 100 %" in line for line in show(spans, breakdown=kind)) for kind in ("auto", "all", "none")
    ]


def test_time_a_breakdown_leaves_open_is_shown():
    """What the parts do not explain is a part of its own."""
    lines = show([span(1, "root", **{"ebpftrace.time.disk": 40 * MS})], width=120)

    assert any("disk 40 % (40 ms) · unaccounted 60 %" in line for line in lines)


def test_lost_records_errors_and_orphans_are_told():
    """A span says what is wrong with it, in words that need no colour."""
    text = "\n".join(
        show([span(1, "root", error="boom", **{"ebpftrace.lost_records": 3}), span(2, "lone", "gone")], width=120)
    )

    assert "✗ root" in text
    assert "✗ boom" in text
    assert "3 kernel records lost" in text
    assert "lone  app (parent not in this file)" in text


def test_long_name_does_not_hide_what_is_wrong_with_a_span():
    """Where the mark does not fit behind the name, it has a line of its own."""
    assert "⚠ parent not in this file" in show([span(1, "root"), span(2, "long " * 30, "gone")])[-3]


def test_escape_codes_of_a_trace_never_reach_the_terminal():
    """Names, services, errors and attributes are shown with their control characters made visible."""
    evil = "\x1b]0;owned\x07\r\n"
    spans = [span(1, evil, error=evil), kernel(2, evil, 1, 10, 90, **{"ebpftrace.sched.syscall": evil})]
    spans[0].service = evil
    (trace,) = build_traces(spans)
    out = "\n".join([*render(trace, Options()), *render_list([trace], Options(), Theme())])

    assert {"\n"} == {char for char in out if not char.isprintable()}
    assert r"\x1b]0;owned\x07" in out


def test_ascii_theme_writes_ascii_only():
    """The fallback holds for our own glyphs and for the trace's text."""
    (trace, *_) = build_traces(load(str(REPORT)).spans)
    trace.root.name = "GET /café"

    assert "\n".join(render(trace, Options(), Theme(ascii_only=True))).isascii()


@pytest.mark.parametrize("colours", [0, 16, 256])
@pytest.mark.parametrize("width", [40, 60, 100, 173])
def test_no_line_is_wider_than_asked(width, colours):
    """Every line fits, with and without colours."""
    (trace, *_) = build_traces(load(str(REPORT)).spans)
    lines = [SGR.sub("", line) for line in render(trace, Options(width=width), Theme(colours=colours))]

    assert max(map(cell_width, lines)) <= width


def test_colours_change_nothing_but_colours_of_the_rows():
    """A span's row reads the same without its escape codes, grid aside."""
    (trace, *_) = build_traces(load(str(REPORT)).spans)
    plain = [line for line in render(trace, Options()) if "render chart" in line]
    coloured = [SGR.sub("", line) for line in render(trace, Options(), Theme(colours=256)) if "render chart" in line]

    assert plain[0].replace(" ", "") == coloured[0].replace("┊", "").replace(" ", "")


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=6), st.integers(0, 9), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.booleans()
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 5),
)
def test_any_tree_is_drawn_within_its_width(rows, max_rows):
    """Whatever the times, names and parents are, the waterfall is drawn and fits."""
    spans = [
        Span("t", str(i), str(parent), name, "", start, end, {"ebpftrace.program": "x"} if is_kernel else {})
        for i, (name, parent, start, end, is_kernel) in enumerate(rows)
    ]
    (trace,) = build_traces(spans)
    for theme in (Theme(), Theme(ascii_only=True, colours=16), Theme(colours=256)):
        for line in render(trace, Options(width=60, max_rows=max_rows), theme):
            assert cell_width(SGR.sub("", line)) <= 60


def test_very_long_chain_is_drawn():
    """A chain far deeper than Python's recursion limit is shown in bounded width."""
    spans = [span(i, f"f{i}", i - 1 if i > 1 else "") for i in range(1, 5000)]

    assert max(map(cell_width, show(spans, max_rows=0))) <= 80


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        """A terminal, for whoever asks."""
        return True


@pytest.mark.parametrize(
    ("env", "colour", "expected"),
    [
        ({"TERM": "xterm-256color"}, "auto", 256),
        ({"TERM": "xterm"}, "auto", 16),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "auto", 256),
        ({"TERM": "dumb"}, "auto", 0),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "auto", 0),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, "auto", 256),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "always", 256),
        ({"TERM": "xterm-256color"}, "never", 0),
    ],
)
def test_colours_follow_the_terminal_and_the_user(env, colour, expected):
    """TERM, COLORTERM and NO_COLOR decide, and --color decides over them."""
    assert expected == choose_theme(Terminal(), colour=colour, env=env).colours


def test_pipe_gets_no_colours_and_latin1_gets_ascii():
    """A stream that is no terminal is plain; one that cannot encode the glyphs is ASCII."""
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")

    assert Theme(ascii_only=True, colours=0) == choose_theme(pipe, env={"TERM": "xterm-256color"})
