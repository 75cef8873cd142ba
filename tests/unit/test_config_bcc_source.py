# SPDX-License-Identifier: Apache-2.0
"""A program whose source is for BCC, checked before anything is compiled."""

from __future__ import annotations

import shutil

import pytest
from config_support import DATA, run

from ebpftrace.cli.check import CheckCommand
from ebpftrace.config.check import check_program
from ebpftrace.config.files import find

STEM = "opens-trace"


@pytest.fixture
def program(tmp_path):
    """The two files; the path of the YAML."""
    shutil.copy(DATA / f"bcc/{STEM}.bcc.c", tmp_path)
    shutil.copy(DATA / f"bcc/{STEM}.yaml", tmp_path)
    return tmp_path / f"{STEM}.yaml"


def change(path, text, other):
    """Change one of the files."""
    assert text in path.read_text()
    path.write_text(path.read_text().replace(text, other))


def report(program):
    """What is found out about it."""
    return check_program(find([], None, [program])[0])


def test_right(program, capsys):
    """A pair that fits is right, as far as that shows."""
    assert 0 == run(CheckCommand(), program)
    assert "opens-trace: right, as far as that shows before BCC compiles it; spans: open\n" == capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "text", "other", "key", "said"),
    [
        ("yaml", "ringbuf: opens", "ringbuf: opnes", "tracing.spans[0].ringbuf", "did you mean 'opens'"),
        ("yaml", "marker: 7", "mraker: 7", "knobs.mraker", "does not use KNOB_mraker"),
        ("yaml", "knobs:", "kaddrs: [init_task]\nknobs:", "kaddrs[0]", "does not use KADDR_init_task"),
        ("bcc.c", "BPF_RINGBUF_OUTPUT(", "// BPF_RINGBUF_OUTPUT(", "tracing.spans[0].ringbuf", "declares no"),
    ],
)
def test_wrong(program, file, text, other, key, said):  # noqa: PLR0917  (a table)
    """A name that the source does not have is a problem, with line and key."""
    change(program.with_name(f"{STEM}.{file}"), text, other)
    [problem] = report(program).problems

    assert problem.line > 0
    assert key == problem.key
    assert said in str(problem)


def test_own_headers(program):
    """What is not in the source may be in a header beside it: then it is a warning."""
    source = program.with_name(f"{STEM}.bcc.c")
    change(source, "#include <ebpftrace_bcc.h>", '#include "opens.h"')
    change(source, "BPF_RINGBUF_OUTPUT(opens, 16);", "")
    found = report(program)

    assert () == found.problems
    assert ["tracing.spans[0].ringbuf"] == [warning.key for warning in found.warnings]


def test_perf_buffer(program):
    """A perf buffer is right, but not for the agent, and that is a warning."""
    change(program.with_name(f"{STEM}.bcc.c"), "BPF_RINGBUF_OUTPUT(opens, 16)", "BPF_PERF_OUTPUT(opens)")
    found = report(program)

    assert () == found.problems
    assert ["is a perf buffer" in warning.what for warning in found.warnings] == [True]


def test_unreadable_source(program):
    """A source that is no text is a problem of that file."""
    program.with_name(f"{STEM}.bcc.c").write_bytes(b"\xff")

    assert [f"{STEM}.bcc.c"] == [problem.source for problem in report(program).problems]


def test_label_form(program):
    """Without a struct, labels are laid out and checked as ever."""
    change(program, "      struct: open_t\n", "      base: ebpftrace\n")
    change(program, "{name: pid,", "{name: pid, size: 4,")
    change(program, "{name: marker}", "{name: marker, size: 4}")
    change(program, "{name: comm,", "{name: comm, size: 16,")
    change(program, "{name: path,", "{name: path, size: 64,")
    [layout] = report(program).layouts

    assert {"pid": 56, "path": 80} == {
        each.name: each.offset for each in layout.columns if each.name in ("pid", "path")
    }
