# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace check`: whether programs' files are right, before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebpftrace.errors import CommandError, ConfigError

if TYPE_CHECKING:
    import argparse

    from ebpftrace.config.check import Report
    from ebpftrace.config.files import ProgramFiles
    from ebpftrace.config.problems import Problem


class CheckCommand:
    """Check programs' files: the YAML, the object, and every label against the C struct of its record.

    Needs no privilege and loads nothing. A program is NAME.yaml with NAME.bpf.o beside it, or NAME.bcc.c, a source that
    BCC compiles where it is loaded, so that of this only names are checked; without arguments all
    programs that come with ebpftrace are checked, or with --config-dir all of that directory. Exit code 0: all can be
    used, though there may be warnings; 1: not all.
    """

    name = "check"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "files", nargs="*", metavar="YAML", type=Path, help="a program's file, its object beside it"
        )
        parser.add_argument("--config-dir", metavar="DIR", type=Path, help="where NAME.yaml and NAME.bpf.o are")
        parser.add_argument(
            "--config-names", metavar="NAMES", default="", help="programs to check, separated by commas"
        )
        output = parser.add_mutually_exclusive_group()
        output.add_argument("--json", action="store_true", help="print the result as JSON")
        output.add_argument(
            "--schema", action="store_true", help="print the JSON Schema of the YAML files, for editors, and end"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Check and print.

        Raises:
            CommandError: a file is missing.
        """
        if args.schema:
            from ebpftrace.config.schema import schema_text

            print(schema_text(), end="")
            return 0
        from ebpftrace.config.check import check_program

        reports = [check_program(files) for files in _files(args)]
        if args.json:
            ok = not any(report.problems for report in reports)
            print(json.dumps({"ok": ok, "programs": [_as_json(report) for report in reports]}, indent=2))
        else:
            _print(reports)
        return 1 if any(report.problems for report in reports) else 0


def _files(args: argparse.Namespace) -> list[ProgramFiles]:
    from ebpftrace.config.files import all_of, all_shipped, find

    names = [name.strip() for name in args.config_names.split(",") if name.strip()]
    try:
        if not names and not args.files:
            return all_shipped() if args.config_dir is None else all_of(args.config_dir)
        return find(names, args.config_dir, args.files)
    except ConfigError as error:
        raise CommandError(str(error)) from error


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "program": report.files.stem,
        "yaml": str(report.files.yaml),
        "object": str(report.files.object) if report.files.object else None,
        "bcc": str(report.files.bcc) if report.files.bcc else None,
        "problems": [dataclasses.asdict(problem) for problem in report.problems],
        "warnings": [dataclasses.asdict(warning) for warning in report.warnings],
    }


def _print(reports: list[Report]) -> None:
    """Problems and warnings on standard error, as other compilers do; the verdict on standard output."""
    for report in reports:
        for problem in report.problems:
            print(_at(problem, report), file=sys.stderr)
        for warning in report.warnings:
            print(f"warning: {_at(warning, report)}", file=sys.stderr)
    sys.stderr.flush()
    for report in reports:
        if report.problems:
            count = len(report.problems)
            verdict = "1 problem" if count == 1 else f"{count} problems"
        else:
            right = "right" if report.files.object else "right, as far as that shows before BCC compiles it"
            verdict = f"{right}; spans: {', '.join(report.spans)}"
        print(f"{report.files.stem}: {verdict}")


def _at(problem: Problem, report: Report) -> str:
    """A problem with the path as it was given, which editors and terminals can open."""
    files = report.files
    paths = {path.name: path for path in (files.yaml, files.object, files.bcc) if path is not None}
    return str(dataclasses.replace(problem, source=str(paths[problem.source])))
