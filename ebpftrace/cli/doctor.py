# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace doctor`: what works here, and what to do about the rest."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from ebpftrace.features import Feature, Report

_PIPE_WIDTH = 100
_MIN_WIDTH = 60


class DoctorCommand:
    """Say what this kernel and this process's privileges allow, what is used, and what to do about what is missing.

    Everything is found out by trying it. Exit code 0: the library can trace here; 1: it cannot.
    """

    name = "doctor"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("--json", action="store_true", help="print the report as JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Probe and print."""
        from ebpftrace.features import probe

        report = probe()
        if args.json:
            features = [dataclasses.asdict(feature) for feature in report.features]
            print(json.dumps({"usable": report.usable, "features": features}, indent=2))
        else:
            _print_table(report)
        return 0 if report.usable else 1


def _print_table(report: Report) -> None:
    tty = sys.stdout.isatty()
    width = max(_MIN_WIDTH, shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns if tty else _PIPE_WIDTH)
    colour = tty and not os.environ.get("NO_COLOR")
    names = max(len(feature.name) for feature in report.features)
    rest = width - names - 12
    print(f"{'FEATURE':<{names}}  {'STATUS':<8}  WHAT WAS SEEN{' — ' if _can_print('—') else ' - '}WHAT IT IS FOR")
    for feature in report.features:
        word = _verdict(feature)
        text = f"{word:<8}"
        if colour:
            text = f"\033[{_COLOURS[word]}m{text}\033[0m"
        lines = textwrap.wrap(_says(feature), rest)
        print(f"{feature.name:<{names}}  {text}  {lines[0]}")
        for line in lines[1:]:
            print(" " * (names + 12) + line)
        if not feature.available and feature.hint:
            for index, line in enumerate(textwrap.wrap(feature.hint, rest - 2)):
                print(" " * (names + 12) + ("→ " if index == 0 and _can_print("→") else "  ") + line)
    missing = [feature.name for feature in report.features if feature.required and not feature.available]
    print()
    if report.by_agent:
        print("The library can trace here, by the agent: this process may load nothing itself.")
    elif missing:
        print(f"The library cannot trace here. Missing: {', '.join(missing)}.")
    else:
        print("The library can trace here, with every shipped program.")


_COLOURS = {"ok": "32", "MISSING": "1;31", "no": "33"}


def _verdict(feature: Feature) -> str:
    if feature.available:
        return "ok"
    return "MISSING" if feature.required else "no"


def _says(feature: Feature) -> str:
    dash = " — " if _can_print("—") else " - "
    return feature.detail + (f"{dash}{feature.use}" if feature.use else "")


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
