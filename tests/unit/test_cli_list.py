# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace list`."""

from __future__ import annotations

import json

import pytest
from config_support import run

from ebpftrace.cli.list import ListCommand
from ebpftrace.errors import CommandError
from ebpftrace.programs import find, names


@pytest.fixture
def programs(capsys):
    """What --json prints, by stem."""
    assert 0 == run(ListCommand(), "--json")
    return {program["stem"]: program for program in json.loads(capsys.readouterr().out)["programs"]}


def test_all_programs(programs):
    """Every shipped program is in the list, with what its file says of it."""
    assert {find(name).stem for name in names()} == set(programs)
    for stem, program in programs.items():
        config = find(stem).config()
        assert config.description == program["description"]
        assert [span.name for span in config.tracing.spans] == [span["name"] for span in program["spans"]]
        assert program["hooks"]


def test_details(programs):
    """A span has its hook and its attributes with their types, a program its knobs with their defaults."""
    sched = programs["sched-trace"]
    switch = next(span for span in sched["spans"] if span["name"] == "sched_switch")

    assert "kernel BTF" == sched["needs"]
    assert "tp_btf/sched_switch" == switch["hook"]
    assert {"label": "pid", "key": "process.pid", "type": "int"} in switch["attributes"]
    assert {"name": "min_off_cpu_ns", "type": "unsigned 64 bits", "default": 100000} in sched["knobs"]
    assert {"hook": "tp_btf/sched_switch", "function": "sched_switch", "optional": False} in sched["hooks"]


def test_knobs_of_people_only(programs):
    """What the loader sets by itself is no knob."""
    knobs = [knob["name"] for program in programs.values() for knob in program["knobs"]]

    assert not [name for name in knobs if name.startswith(("ebt_", "has_", "kaddr_")) or "_has_" in name]


def test_list_knobs(programs):
    """A list that a file gives is a knob too."""
    [roots] = [knob for knob in programs["exec-trace"]["knobs"] if knob["name"] == "roots"]

    assert "list of texts" == roots["type"]
    assert find("exec").config().knobs["roots"] == roots["default"]


@pytest.mark.parametrize("name", ["exec", "exec-trace"])
def test_one_program(capsys, name):
    """With a name, as the agent takes it, there is that program alone."""
    assert 0 == run(ListCommand(), "--json", name)

    assert ["exec-trace"] == [each["stem"] for each in json.loads(capsys.readouterr().out)["programs"]]


def test_unknown_program():
    """A name that is no program's is refused, and those there are are named."""
    with pytest.raises(CommandError, match=r"no program 'exce'; there are: .*exec-trace") as caught:
        run(ListCommand(), "exce")

    assert 2 == caught.value.exit_code


def test_text(capsys):
    """The text for people names programs, hooks, spans, attributes and knobs, in lines that fit a terminal."""
    assert 0 == run(ListCommand())
    lines = capsys.readouterr().out.splitlines()

    assert {find(name).stem for name in names()} <= set(lines)
    assert any(line.startswith("  hooks   tp_btf/") for line in lines)
    assert "  span    sched_switch from tp_btf/sched_switch" in lines
    assert any("tid -> thread.id" in line for line in lines)
    assert "  knob    min_off_cpu_ns = 100000 (unsigned 64 bits)" in lines
    assert max(map(len, lines)) <= 100
