# SPDX-License-Identifier: Apache-2.0
"""Broken files, each with what `ebpftrace check` says of it to the letter.

tests/data/broken/NN-slug.yaml is checked against the object of the program exec-trace; NN-slug.txt is what is said.
"""

from __future__ import annotations

import re

import pytest
from config_support import DATA

from ebpftrace.config.check import check_program
from ebpftrace.config.files import ProgramFiles, find

BROKEN = sorted((DATA / "broken").glob("*.yaml"))


@pytest.mark.parametrize("yaml", BROKEN, ids=[path.stem for path in BROKEN])
def test_messages(yaml):
    """A broken file is told exactly so."""
    [shipped] = find(["exec-trace"])
    report = check_program(ProgramFiles(yaml.stem, yaml, shipped.object))

    assert yaml.with_suffix(".txt").read_text().splitlines() == [str(problem) for problem in report.problems]
    assert () == report.warnings


def test_every_message_says_where_and_what():
    """No message is without its file, and but for a file that is none, each has a line, a key and two parts more."""
    for path in (DATA / "broken").glob("*.txt"):
        for line in path.read_text().splitlines():
            assert re.match(r"[\w-]+\.yaml:(\d+: )?(\S+: .+: .+|.*not YAML: .+|.*the file is .+|\S+: .+)$", line), line


def test_there_are_enough():
    """Every broken file has its messages and every message file its broken one."""
    assert len(BROKEN) >= 20
    assert [path.stem for path in BROKEN] == sorted(path.stem for path in (DATA / "broken").glob("*.txt"))
