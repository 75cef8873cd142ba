# SPDX-License-Identifier: Apache-2.0
"""Run one of BCC's tools as it is, and make spans of the records that it reads.

    python3 -m ebpftrace.bcc [--config FILE] [--output FILE] TOOL [ARGUMENT...]

The tool gets its records as always; a copy of each becomes a span.
"""

from __future__ import annotations

import argparse
import runpy
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ebpftrace.bcc import tap
from ebpftrace.bcc.find import load_bcc
from ebpftrace.errors import EbpftraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SUFFIX = "-bpfcc"  # Debian's tools have it, BCC's own have not


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit code, or 1 when it cannot be run."""
    args = _parser().parse_args(argv)
    try:
        tool = _find_tool(args.tool)
        taps = tap.Taps(
            load_bcc(),
            Path(tool).stem.removesuffix(_SUFFIX),
            args.config,
            stamp=args.stamp,
            service_name=args.service_name,
            output=args.output,
        )
    except EbpftraceError as error:
        sys.stderr.write(f"ebpftrace: {error}\n")
        return 1

    def terminated(number: int, _frame: Any) -> NoReturn:
        """End the tool as its own exit() would, so that the last spans are exported."""
        taps.ending = SystemExit(128 + number)
        raise taps.ending

    signal.signal(signal.SIGTERM, terminated)
    try:
        return _run(tool, args.arguments)
    finally:
        taps.close()
        sys.stderr.write(f"ebpftrace: {taps.summary()}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m ebpftrace.bcc", description="Run one of BCC's tools, and make spans of what it reads."
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of the tool's records; else BCC is asked")
    parser.add_argument(
        "--stamp", choices=("start", "end"), default="start", help="what the records' times are (default: %(default)s)"
    )
    parser.add_argument("--output", metavar="FILE", default="", help="write the spans there as OTLP JSON lines")
    parser.add_argument("--service-name", metavar="NAME", default="", help="service.name of the spans")
    parser.add_argument("tool", metavar="TOOL", help="path, or name on PATH, with or without -bpfcc")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="of the tool")
    return parser


def _find_tool(name: str) -> str:
    found = next(filter(None, map(shutil.which, (name, name + _SUFFIX))), None)
    if found is None and Path(name).is_file():
        found = name
    if found is None:
        raise EbpftraceError(f"{name}: no such tool: give its path; Debian's package bpfcc-tools has many")
    return found


def _run(tool: str, arguments: Sequence[str]) -> int:
    sys.argv = [tool, *arguments]
    try:
        runpy.run_path(tool, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
