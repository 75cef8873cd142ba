# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace run`: an unmodified Python program with kernel tracing on."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.errors import CommandError
from ebpftrace.programs import find, names
from ebpftrace.runtime import autostart
from ebpftrace.settings import SAMPLED, resolve, variable

if TYPE_CHECKING:
    from types import FrameType

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class RunCommand:
    """Run a Python program with kernel tracing on, without changing it.

    A program that uses OpenTelemetry gets kernel spans and the kernel time breakdown in its own traces. A program
    that makes spans but sets no SDK up gets one from the OTEL_* variables. Python processes that it starts are traced
    too. The program's exit code is passed on.
    """

    name = "run"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("--output", metavar="FILE", help="also write all spans to FILE, as OTLP JSON lines")
        parser.add_argument(
            "--enable",
            metavar="PROGRAMS",
            default=",".join(names()),
            help="programs that act for every sampled span, comma separated; 'sampled' for the "
            "EBPFTRACE_PROGRAMS, 'none' for none (default: %(default)s)",
        )
        parser.add_argument("--service-name", metavar="NAME", help="service.name of the kernel's spans")
        parser.add_argument(
            "--min-off-cpu-us", metavar="US", type=int, help="waits shorter than this make no span (default: 100)"
        )
        parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD [ARG...]", help="the program to run")

    def run(self, args: argparse.Namespace) -> int:
        """Start the program, pass signals on to it, wait for it."""
        argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
        if not argv:
            raise CommandError("no program to run: ebpftrace run -- python app.py", exit_code=2)
        if shutil.which(argv[0]) is None:
            if Path(argv[0]).exists():
                raise CommandError(f"{argv[0]!r} is not a program that may be executed", exit_code=126)
            raise CommandError(f"there is no program {argv[0]!r} on the PATH", exit_code=127)
        environment = dict(os.environ)
        _set_environment(args, environment)
        output = _prepare_output(args.output, environment)
        code = _run(argv, environment)
        if output is not None and output.stat().st_size == 0:
            print(
                f"ebpftrace: no span was written to {output}: either {argv[0]} made none (is it a Python program that "
                "uses OpenTelemetry?), or none was sampled, or the SDK or ebpftrace is disabled, or its Python cannot "
                "import ebpftrace (install it there), or it was started with -I, -E or -S",
                file=sys.stderr,
            )
        return code


def _set_environment(args: argparse.Namespace, environment: dict[str, str]) -> None:
    enabled = [] if args.enable == "none" else [name for name in args.enable.split(",") if name]
    for name in enabled if enabled != [SAMPLED] else ():
        find(name)  # a wrong name is an error here, not a warning in the program's log
    environment[variable("enable")] = ",".join(enabled)
    for name in ("service_name", "min_off_cpu_us"):
        value = getattr(args, name)
        if value is not None:
            resolve({name: value}, environment={})  # as above
            environment[variable(name)] = str(value)
    autostart.prepare(environment)


def _prepare_output(name: str | None, environment: dict[str, str]) -> Path | None:
    if name is None:
        return None
    output = Path(name).resolve()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(b"")
    except OSError as error:
        raise CommandError(f"cannot write to {output}: {error.strerror}") from error
    environment[variable("output")] = str(output)
    return output


def _run(argv: list[str], environment: dict[str, str]) -> int:
    try:
        process = subprocess.Popen(argv, env=environment, close_fds=False)  # noqa: S603  (what the user asked for)
    except OSError as error:
        raise CommandError(f"cannot run {argv[0]!r}: {error.strerror}", exit_code=126) from error

    def forward(number: int, _frame: FrameType | None) -> None:
        # a terminal sends its own to the whole group already
        from_terminal = number in (signal.SIGINT, signal.SIGQUIT) and sys.stdin is not None and sys.stdin.isatty()
        if process.poll() is None and not from_terminal:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
