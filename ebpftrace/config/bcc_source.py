# SPDX-License-Identifier: Apache-2.0
"""What can be told of a source in BCC's dialect of C without compiling it, which takes BCC and the kernel's headers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebpftrace.config import place
from ebpftrace.config.problems import suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.config.model import ProgramConfig
    from ebpftrace.config.problems import Problems
    from ebpftrace.kernel.btf import Field, Group

KNOB, ADDRESS = "KNOB_", "KADDR_"
"""What the macros of a file's knobs and kernel symbols begin with."""

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_BUFFER = re.compile(r"\bBPF_(RINGBUF|PERF)_OUTPUT\s*\(\s*(\w+)")
_OWN_HEADERS = re.compile(r'^\s*#\s*include\s*"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _NoTypes:
    """No struct is known before BCC has compiled."""

    def __bool__(self) -> bool:
        return False

    def structs(self) -> list[str]:
        return []

    def struct_size(self, name: str) -> int:
        raise KeyError(name)

    def fields(self, name: str) -> list[Field]:
        raise KeyError(name)

    def groups(self, name: str) -> list[Group]:
        raise KeyError(name)


def examine_source(program: str, config: ProgramConfig, text: str, problems: Problems) -> list[RecordLayout]:
    """Look whether a source has what a program's file names; return the layouts that need no struct.

    Args:
        program: the program's name, for its spans.
        config: what its file says.
        text: the source.
        problems: gets what is wrong, and what may be.
    """
    text = _COMMENT.sub(" ", text)
    buffers = {name: kind for kind, name in _BUFFER.findall(text)}
    note = problems.warn if _OWN_HEADERS.search(text) else problems.add  # what is missing may be in one of those
    layouts = []
    for index, span in enumerate(config.tracing.spans):
        path = f"tracing.spans[{index}]"
        key = f"{path}.ringbuf"
        if span.ringbuf not in buffers:
            mend = suggest(span.ringbuf, buffers, "it has")
            note(key, f"the source for BCC declares no BPF_RINGBUF_OUTPUT({span.ringbuf}, …)", mend)
        elif buffers[span.ringbuf] == "PERF":
            what = f"{span.ringbuf!r} is a perf buffer in the source for BCC, which the agent does not read"
            problems.warn(key, what, "declare it by BPF_RINGBUF_OUTPUT, or read it by ebpftrace.bcc.load()")
        if not span.struct:
            layout = place.layout(span, path, _NoTypes(), problems, program=program)
            layouts += [layout] if layout is not None else []
    for key, macro in macros_of(config).items():
        if not re.search(rf"\b{macro}\b", text):
            note(key, f"the source for BCC does not use {macro}", "use it, or leave this out")
    return layouts


def macros_of(config: ProgramConfig) -> dict[str, str]:
    """Return the macros by which a source gets a file's numbers and addresses, by their keys in the file."""
    numbers: Sequence[str] = [name for name, value in config.knobs.items() if not isinstance(value, list)]
    found = {f"knobs.{name}": KNOB + name for name in numbers}
    return found | {f"kaddrs[{index}]": ADDRESS + symbol for index, symbol in enumerate(config.kaddrs)}
