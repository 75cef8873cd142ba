# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace show`: a recorded trace as a waterfall in the terminal."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from ebpftrace.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ebpftrace.viewer import Theme, Trace

_PIPE_WIDTH = 100
_MIN_WIDTH = 40
_MAX_WIDTH = 1000
_DEFAULT_ROWS = 300


class ShowCommand:
    """Show a trace as a waterfall: spans, kernel spans under the span that suffered them, and where the time went.

    FILE holds OTLP JSON lines, as `ebpftrace run --output FILE` writes them; `-` reads standard input. Of several
    traces the slowest is shown. Colours and the terminal's width are used on a terminal only; NO_COLOR turns colours
    off.
    """

    name = "show"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "file", metavar="FILE", help="OTLP JSON lines, or one OTLP JSON document; - for standard input"
        )
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--trace", metavar="ID", help="show the trace whose id starts with ID")
        which.add_argument("--slowest", action="store_true", help="show the trace with the slowest root span (default)")
        which.add_argument("--all", action="store_true", help="show every trace, slowest first")
        which.add_argument("--list", action="store_true", help="one line a trace, slowest first")
        parser.add_argument(
            "--width", type=_width, metavar="N", help="cells of a line (default: the terminal's, else 100)"
        )
        parser.add_argument("--ascii", action="store_true", help="use ASCII characters only")
        parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="default: %(default)s")
        parser.add_argument(
            "--breakdown", choices=("auto", "all", "none"), default="auto",
            help="which spans to break down: those above 1 %% of the trace (auto), all or none",
        )  # fmt: skip
        parser.add_argument(
            "--max-rows", type=_rows, default=_DEFAULT_ROWS, metavar="N",
            help="fold until at most N rows are left; 0: no limit (default: %(default)s)",
        )  # fmt: skip
        parser.add_argument("--no-fold", action="store_true", help="a row for each span, up to --max-rows")
        parser.add_argument("--no-verdict", action="store_true", help="leave out the last paragraph")

    def run(self, args: argparse.Namespace) -> int:
        """Read the file and print.

        Raises:
            CommandError: the file cannot be shown (exit code 1), or --trace names none or several (2).
        """
        from ebpftrace.viewer import TraceFileError, build_traces, choose_theme, load
        from ebpftrace.viewer.otlp import paused_gc

        theme = choose_theme(sys.stdout, colour=args.color, ascii_only=args.ascii)
        with paused_gc():
            try:
                document = load(args.file)
            except TraceFileError as error:
                name = "standard input" if args.file == "-" else args.file
                raise CommandError(f"{_safe(name)}: {error}") from error
            for note in document.notes:
                print(f"note: {note}", file=sys.stderr)
            return _print(_output(build_traces(document.spans), args, theme))


def _output(traces: list[Trace], args: argparse.Namespace, theme: Theme) -> Iterator[str]:
    from ebpftrace.viewer import Options, render, render_list

    options = Options(
        width=args.width or _terminal_width(),
        breakdown=args.breakdown,
        fold=not args.no_fold,
        max_rows=args.max_rows,
        verdict=not args.no_verdict,
    )
    if args.list:
        yield from render_list(traces, options, theme)
        return
    chosen = traces if args.all else [_find(traces, args.trace) if args.trace else traces[0]]
    for index, trace in enumerate(chosen):
        if index:
            yield ""
        yield from render(trace, options, theme)
    if len(traces) > len(chosen) and not args.trace:
        yield ""
        others = len(traces) - 1
        hidden = f"The slowest of {len(traces):,} traces; {others:,} {'is' if others == 1 else 'are'} not shown: "
        ways = "--list names them, --trace ID shows one, --all shows all."
        yield from _wrapped(theme, hidden + ways, options.width)


def _wrapped(theme: Theme, text: str, width: int) -> Iterator[str]:
    for line in textwrap.wrap(text, width):
        yield theme.paint([(line, "detail")])


def _find(traces: list[Trace], prefix: str) -> Trace:
    found = [trace for trace in traces if trace.trace_id.startswith(prefix.lower())]
    if not found:
        raise CommandError(f"--trace {_safe(prefix)}: no trace id starts so; --list shows them", exit_code=2)
    if len(found) > 1:
        some = ", ".join(trace.trace_id for trace in found[:3]) + (", …" if len(found) > 3 else "")
        raise CommandError(
            f"--trace {_safe(prefix)}: {len(found)} trace ids start so ({some}); give more of it", exit_code=2
        )
    return found[0]


def _print(lines: Iterator[str]) -> int:
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _terminal_width() -> int:
    if not sys.stdout.isatty():
        return _PIPE_WIDTH
    return max(_MIN_WIDTH, shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns)


def _safe(text: str) -> str:
    from ebpftrace.viewer.text import clean

    return clean(text)


def _width(text: str) -> int:
    return _integer(text, _MIN_WIDTH, _MAX_WIDTH)


def _rows(text: str) -> int:
    return _integer(text, 0, None)


def _integer(text: str, least: int, most: int | None) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least or (most is not None and value > most):
        between = f"from {least} on" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {between}")
    return value
