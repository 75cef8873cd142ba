# SPDX-License-Identifier: Apache-2.0
"""Entry point of the `ebpftrace` command."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
from typing import TYPE_CHECKING, Protocol

from ebpftrace._version import version
from ebpftrace.cli.agent import AgentCommand
from ebpftrace.cli.build import BuildCommand
from ebpftrace.cli.check import CheckCommand
from ebpftrace.cli.demo import DemoCommand
from ebpftrace.cli.doctor import DoctorCommand
from ebpftrace.cli.list import ListCommand
from ebpftrace.cli.run import RunCommand
from ebpftrace.cli.show import ShowCommand
from ebpftrace.errors import CommandError, ConfigError, EbpftraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTERRUPTED = 130


class Command(Protocol):
    """A sub-command; the first line of its docstring is its summary, all of it its help."""

    name: str

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; return the exit code."""


COMMANDS: tuple[type[Command], ...] = (
    RunCommand,
    AgentCommand,
    ShowCommand,
    ListCommand,
    CheckCommand,
    BuildCommand,
    DoctorCommand,
    DemoCommand,
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="ebpftrace", description="Kernel spans and kernel time inside your OpenTelemetry traces."
    )
    parser.add_argument("--version", action="version", version=f"ebpftrace {version}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say on stderr what is being done")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for make in COMMANDS:
        command = make()
        text = inspect.getdoc(command) or ""
        sub = commands.add_parser(
            command.name,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.prepare_parser(sub)
        sub.set_defaults(command=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 1 for bad input, 2 for wrong usage."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr
    )
    command: Command = args.command
    try:
        return command.run(args)
    except CommandError as error:
        return _fail(error, error.exit_code)
    except ConfigError as error:
        return _fail(error, 2)
    except EbpftraceError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _fail(error: EbpftraceError, code: int) -> int:
    if error.told:
        return code
    print(f"ebpftrace: {error}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(note, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
