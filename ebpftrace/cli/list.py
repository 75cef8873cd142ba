# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace list`: the programs that come with ebpftrace."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from ebpftrace.errors import CommandError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

_PIPE_WIDTH = 100
_MIN_WIDTH = 60
_INDENT = 10
_BOLD, _PLAIN = "\033[1m", "\033[0m"


class ListCommand:
    """List the programs that come with ebpftrace: their hooks, their spans, the attributes of these, and their knobs.

    Needs no privilege. Without names it lists all. Names are those that `ebpftrace agent --config-names` takes.
    """

    name = "list"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("names", nargs="*", metavar="NAME", help="only these programs, such as exec or exec-trace")
        parser.add_argument("--json", action="store_true", help="print the list as JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Read the programs and print.

        Raises:
            CommandError: no program of a name comes with ebpftrace.
        """
        from ebpftrace.config.catalog import describe_shipped

        programs = _chosen(describe_shipped(), args.names)
        if args.json:
            print(json.dumps({"programs": programs}, indent=2))
        else:
            print("\n".join(_lines(programs)))
        return 0


def _chosen(programs: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    stems = [program["stem"] for program in programs]
    unknown = [name for name in names if not {name, f"{name}-trace"} & set(stems)]
    if unknown:
        raise CommandError(f"there is no program {unknown[0]!r}; there are: {', '.join(stems)}", exit_code=2)
    return [each for each in programs if not names or {each["stem"], each["stem"].removesuffix("-trace")} & set(names)]


def _lines(programs: list[dict[str, Any]]) -> Iterator[str]:
    tty = sys.stdout.isatty()
    width = max(_MIN_WIDTH, shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns if tty else _PIPE_WIDTH)
    bold, plain = (_BOLD, _PLAIN) if tty and not os.environ.get("NO_COLOR") else ("", "")
    for index, program in enumerate(programs):
        if index:
            yield ""
        yield f"{bold}{program['stem']}{plain}"
        yield from textwrap.wrap(program["description"], width, initial_indent="  ", subsequent_indent="  ")
        hooks = [hook["hook"] + (" (optional)" if hook["optional"] else "") for hook in program["hooks"]]
        yield from _entry("needs", [program["needs"]], width)
        yield from _entry("hooks", dict.fromkeys(hooks), width)
        for span in program["spans"]:
            yield from _entry("span", [span["name"] + (f" from {span['hook']}" if span["hook"] else "")], width)
            labels = [_label(attribute) for attribute in span["attributes"]]
            yield from _entry("", labels, width)
        for knob in program["knobs"]:
            yield from _entry("knob", [f"{knob['name']} = {_value(knob['default'])} ({knob['type']})"], width)


def _label(attribute: dict[str, Any]) -> str:
    label, key = attribute["label"], attribute["key"]
    return key if label == key else f"{label} -> {key}"


def _entry(what: str, items: Iterable[str], width: int) -> Iterator[str]:
    """Items after a word, broken between items only."""
    line = f"  {what}".ljust(_INDENT)
    for index, item in enumerate(items):
        if index and len(line) + len(item) + 3 > width:
            yield f"{line},"
            line = " " * _INDENT + item
        else:
            line += f"{', ' if index else ''}{item}"
    if line.strip():
        yield line


def _value(value: object) -> str:
    return json.dumps(value) if not isinstance(value, list) else ", ".join(value) or "none"
