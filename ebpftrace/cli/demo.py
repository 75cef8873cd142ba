# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace demo`: a slow service, and why it is slow; and short programs, one half traced and the other not."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import sys
import textwrap
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.errors import CommandError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from types import FrameType

    from ebpftrace.demos.http_service.run import Outcome
    from ebpftrace.demos.scripts import Script
    from ebpftrace.viewer import Theme, Trace
    from ebpftrace.viewer.theme import Line
    from ebpftrace.viewer.trace import Span

_DEFAULT = "http-service"
_ABOUT = "a small shop over HTTP, under a CPU quota: why are some orders slow?"
_NOT_HERE = 3
_PIPE_WIDTH = 100
_MIN_WIDTH = 60
_MAX_WIDTH = 150
_ROWS = 60
_HEADING_CELLS = 11
_PROBLEMS = 5


class DemoCommand:
    """Run a small service, trace it, and show why its slowest request was slow.

    Takes about eight seconds, root (or CAP_BPF and CAP_PERFMON), and `pip install 'ebpftrace[demo]'`. Where the kernel
    refuses, it says what is missing, shows a recorded trace instead and exits with 3. The other demos (--list) are
    short programs that do one thing twice, traced and untraced; those need nothing but ebpftrace.
    """

    name = "demo"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("demo", nargs="?", metavar="NAME", default=_DEFAULT, help="default: %(default)s")
        parser.add_argument("--list", action="store_true", help="name the demos")
        parser.add_argument(
            "--output", metavar="FILE", default="ebpftrace-demo.jsonl",
            help="where the trace goes, as OTLP JSON lines (default: %(default)s)",
        )  # fmt: skip
        parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="default: %(default)s")

    def run(self, args: argparse.Namespace) -> int:
        """Run the demo and print what came of it.

        Raises:
            CommandError: there is no such demo, its dependencies are missing (exit code 2), or it failed (1).
        """
        from ebpftrace.demos.http_service.run import NotTracedError
        from ebpftrace.demos.scripts import SCRIPTS

        demos = {_DEFAULT: _ABOUT, **{name: script.about for name, script in SCRIPTS.items()}}
        if args.list:
            width = max(map(len, demos))
            for name, about in demos.items():
                print(f"{name:{width}}  {about}")
            return 0
        if args.demo not in demos:
            raise CommandError(f"there is no demo {args.demo!r}; there are: {', '.join(demos)}", exit_code=2)
        page = _Page(args.color)
        output = _prepare_output(args.output)
        try:
            if args.demo == _DEFAULT:
                return _run_service(page, output)
            return _run_script(page, output, SCRIPTS[args.demo])
        except NotTracedError as error:
            if args.demo == _DEFAULT:
                return _show_recorded(page, error.reason)
            raise CommandError(
                f"the demo cannot run here: {error.reason}; `ebpftrace doctor` tells what is missing",
                exit_code=_NOT_HERE,
            ) from error


def _run_service(page: _Page, output: Path) -> int:
    from ebpftrace.demos.http_service.run import check_installed, run

    check_installed()
    with _signals_as_exceptions():
        page.title("ebpftrace demo", _ABOUT)
        outcome = run(output, page.fact)
    return _show(page, output, outcome)


def _run_script(page: _Page, output: Path, script: Script) -> int:
    from ebpftrace.demos.scripts import broken_promises, kernel_spans_below, run
    from ebpftrace.viewer import build_traces, load
    from ebpftrace.viewer.check import check_spans

    with _signals_as_exceptions():
        page.title(f"ebpftrace demo {script.name}", script.about)
        run(script, output)
    spans = load(str(output)).spans
    for trace in build_traces(spans):
        page.waterfall(trace, instants=True)
        page.line()
    page.fact("see", script.see)
    counts = [f"{kernel_spans_below(spans, name) or 0:,} below {name!r}" for name in (*script.traced, *script.untraced)]
    page.fact("kernel", f"spans: {', '.join(counts)}")
    problems = [*broken_promises(script, spans), *map(str, check_spans(spans))]
    for problem in problems[:_PROBLEMS]:
        page.fact("wrong", problem)
    page.fact("program", str(script.path()))
    page.fact("trace file", f"{output}; read it again with: ebpftrace show {shlex.quote(str(output))}")
    return 1 if problems else 0


def _prepare_output(name: str) -> Path:
    output = Path(name).resolve()
    if output.is_dir():
        raise CommandError(f"--output {name}: this is a directory; give a file", exit_code=2)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot make the directory {output.parent}: {error.strerror}") from error
    return output


class _Page:
    """What the user sees: headed facts, paragraphs, waterfalls, in one width."""

    def __init__(self, colour: str) -> None:
        from ebpftrace.viewer import choose_theme

        self.theme: Theme = choose_theme(sys.stdout, colour=colour)
        self.width = _PIPE_WIDTH
        if sys.stdout.isatty():
            columns = shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns
            self.width = min(max(columns, _MIN_WIDTH), _MAX_WIDTH)
        self._heading = ""

    def line(self, *segments: tuple[str, str]) -> None:
        """One line, at once: the demo runs for seconds and its user wants to see that it does."""
        from ebpftrace.viewer.text import clean

        line: Line = [(clean(text, ascii_only=self.theme.ascii_only), style) for text, style in segments]
        print(self.theme.paint(line), flush=True)

    def title(self, name: str, about: str) -> None:
        """The first line."""
        self.line((name, "bold"), (f"  {about}", ""))
        self.line()

    def fact(self, heading: str, words: str) -> None:
        """A heading at the left, what it has to say beside it."""
        room = self.width - _HEADING_CELLS - 2
        for index, text in enumerate(textwrap.wrap(words, room, break_on_hyphens=False, break_long_words=False)):
            self.line((f"{'' if index else heading:>{_HEADING_CELLS}}  ", "service"), (text, ""))

    def paragraph(self, words: str, style: str = "") -> None:
        """Words over the whole width."""
        for text in textwrap.wrap(words, min(self.width, 110), break_on_hyphens=False):
            self.line((text, style))

    def waterfall(self, trace: Trace, *, instants: bool = False) -> None:
        """A trace, with its verdict; without the kernel's instants, which can be half of its rows, unless asked for."""
        from ebpftrace.viewer import Options, build_traces, render

        shown = [span for span in trace.spans if instants or span.duration_ns or not span.kernel]
        [trimmed] = build_traces(shown)
        for line in render(trimmed, Options(width=self.width, max_rows=_ROWS), self.theme):
            print(line)
        hidden = len(trace.spans) - len(shown)
        if hidden:
            self.line()
            self.fact("left out", f"{hidden:,} instants of the kernel: sched_switch, sched_wakeup and the like")


def _show(page: _Page, output: Path, outcome: Outcome) -> int:
    from ebpftrace.viewer import build_traces, load
    from ebpftrace.viewer.check import check_spans

    spans = load(str(output)).spans
    traces = build_traces(spans)
    problems = check_spans(spans)
    page.line()
    page.paragraph("The slowest order. The service's spans say how long each step took, the kernel's say why:", "bold")
    page.line()
    page.waterfall(traces[0])
    page.fact("traced", f"{_counts(traces, spans)}; {_lost(outcome) or 'nothing was lost'}")
    if problems:
        page.fact("checked", f"{len(problems):,} of its promises are broken: a bug, please report it")
        for problem in problems[:_PROBLEMS]:
            page.fact("", str(problem))
    else:
        page.fact("checked", "every parent is there, every kernel span lies inside its parent, "
                  "every breakdown adds up to its span's time")  # fmt: skip
    _next_steps(page, output, traces)
    return 1 if problems else 0


def _counts(traces: list[Trace], spans: list[Span]) -> str:
    kernel = sum(span.kernel for span in spans)
    return f"{len(traces):,} traces with {len(spans) - kernel:,} spans of the service and {kernel:,} of the kernel"


def _lost(outcome: Outcome) -> str:
    """What the service's counters say was lost, in words; "" when nothing was."""
    programs = outcome.stats["programs"].values()
    lost = {
        "records in the kernel": sum(sum(program.get("dropped", {}).values()) for program in programs),
        "records that could not be decoded": sum(program.get("undecoded", 0) for program in programs),
        "kernel spans before the exporter": outcome.stats["spans"].get("dropped", 0),
        "spans that could not be written": outcome.failed,
    }
    return ", ".join(f"{count:,} {what} were lost" for what, count in lost.items() if count)


def _next_steps(page: _Page, output: Path, traces: list[Trace]) -> None:
    name = shlex.quote(str(output))
    page.fact("trace file", f"{output} ({output.stat().st_size / 1e6:.1f} MB of OTLP JSON lines)")
    page.line()
    usual = traces[len(traces) // 2].trace_id[:8]
    steps = {
        f"ebpftrace show --list {name}": "every order, slowest first",
        f"ebpftrace show --trace {usual} {name}": "one that took as long as most",
        f"ebpftrace show --no-fold {name}": "the slowest, every kernel span in a row of its own",
    }
    room = max(map(len, steps))
    beside = _HEADING_CELLS + 2 + room + 4 + max(map(len, steps.values())) <= page.width
    for index, (command, about) in enumerate(steps.items()):
        heading = (f"{'' if index else 'look on':>{_HEADING_CELLS}}  ", "service")
        if beside:
            page.line(heading, (command.ljust(room), ""), (f"  # {about}", "detail"))
        else:  # commands stay whole, to be copied
            page.line(heading, (f"# {about}", "detail"))
            page.line((" " * (_HEADING_CELLS + 2), ""), (command, ""))


def _show_recorded(page: _Page, reason: str) -> int:
    from ebpftrace.viewer import build_traces
    from ebpftrace.viewer.otlp import parse

    sys.stdout.flush()
    print(f"ebpftrace: the demo cannot run here: {reason}", file=sys.stderr)
    recorded = resources.files("ebpftrace.demos") / "recorded/http_service.jsonl"
    with recorded.open("rb") as lines:
        traces = build_traces(parse(lines).spans)
    page.line(("RECORDED", "warning"), (": this is a run of the demo on another machine, shown in place of yours.", ""))
    page.line()
    page.waterfall(traces[0])
    page.line()
    page.line(
        ("RECORDED", "warning"), (", see above. To trace this machine, run the demo as root; `ebpftrace doctor`", "")
    )
    page.line(("tells what else is missing.", ""))
    return _NOT_HERE


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """End by way of every `finally`, and let that be done in peace: a second Ctrl-C is not heard."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, _frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
