# SPDX-License-Identifier: Apache-2.0
"""The program that docs/howto/program.md writes."""

from __future__ import annotations

import re
from pathlib import Path

from config_support import run

from ebpftrace.cli.build import BuildCommand
from ebpftrace.cli.check import CheckCommand

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "program.md"


def test_program_of_the_page(tmp_path, capsys):
    """Copied from the page, it compiles without a warning and fits its description, as the page says."""
    text = PAGE.read_text()
    for heading, suffix in (("c", ".bpf.c"), ("yaml", ".yaml")):
        [block] = re.findall(f"```{heading}\n(.*?)```", text, re.DOTALL)
        (tmp_path / f"slow-open{suffix}").write_text(block)

    assert 0 == run(BuildCommand(), tmp_path / "slow-open.bpf.c", "--werror")
    assert 0 == run(CheckCommand(), tmp_path / "slow-open.yaml")
    assert capsys.readouterr().out.splitlines()[-1] in text
