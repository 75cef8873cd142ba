# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from ebpftrace.decoders import catalogue

PAGE = Path(__file__).parents[2] / "docs/reference/decoders.md"
WORDS = {"int": "number"}


def takes(entry):
    """What an entry starts from, in the page's words."""
    sizes = ", ".join(map(str, entry.sizes))
    if entry.multiple > 1:
        sizes = f"{entry.multiple} × n"
    elif entry.least > 1:
        sizes = f"≥ {entry.least}"
    brackets = f"bytes ({sizes})" if sizes else "bytes"
    return ", ".join(brackets if kind == "bytes" else WORDS.get(kind, kind) for kind in entry.takes)


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.name)
def test_documented(entry):
    """The page has each decoder as it is."""
    row = f"| `{entry.name}` | {takes(entry)} | {WORDS.get(entry.gives, entry.gives)} | {entry.summary} |"

    assert row in PAGE.read_text().splitlines()


def test_nothing_else_is_documented():
    """The page's table has no decoder that there is not."""
    section = PAGE.read_text().partition("## All of them")[2].partition("\n## ")[0]

    assert [entry.name for entry in catalogue()] == [
        line.split("`")[1] for line in section.splitlines() if line.startswith("| `")
    ]


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.name)
def test_what_is_looked_up_may_change(entry):
    """A decoder that needs a capability looks at something that changes; sizes are for bytes only."""
    assert not (entry.capability and entry.lasting)
    assert "bytes" in entry.takes or not entry.sizes
    assert not entry.number or "int" in entry.takes
