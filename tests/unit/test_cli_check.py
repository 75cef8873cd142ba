# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace check`."""

from __future__ import annotations

import json
import shutil

import pytest
from config_support import DATA, run

from ebpftrace.cli.check import CheckCommand
from ebpftrace.config.files import find
from ebpftrace.config.schema import schema_text
from ebpftrace.errors import CommandError
from ebpftrace.programs import names


def check(*arguments):
    """Run the command."""
    return run(CheckCommand(), *arguments)


@pytest.fixture
def broken(tmp_path):
    """A broken program: a YAML file with two problems, beside a real object."""
    [shipped] = find(["exec-trace"])
    shutil.copy(shipped.object, tmp_path / "mine.bpf.o")
    (tmp_path / "mine.yaml").write_text((DATA / "broken" / "20-attribute-twice.yaml").read_text() + "colour: red\n")
    return tmp_path / "mine.yaml"


def test_shipped(capsys):
    """Without arguments all shipped programs are checked, and they are right."""
    assert 0 == check()
    out, err = capsys.readouterr()

    assert "" == err
    assert len(names()) == len(out.splitlines())
    assert "exec-trace: right; spans: exec" in out


def test_problems(broken, capsys):
    """Problems go to standard error with a path that an editor can open, the verdict to standard output."""
    assert 1 == check(broken)
    out, err = capsys.readouterr()

    assert "mine: 2 problems\n" == out
    assert err.startswith(
        f"{broken}:9: tracing.spans[0].labels[1]: labels[0] has the attribute 'process.pid' already: "
    )
    assert f"\n{broken}:10: colour: unknown key: " in err


def test_by_name(broken, capsys):
    """--config-dir and --config-names name programs; one bad program does not hide the others."""
    [shipped] = find(["exec-trace"])
    shutil.copy(shipped.object, broken.with_name("fine.bpf.o"))
    shutil.copy(shipped.yaml, broken.with_name("fine.yaml"))

    assert 1 == check("--config-dir", broken.parent, "--config-names", "mine, fine")
    assert ["mine: 2 problems", "fine: right; spans: exec"] == capsys.readouterr().out.splitlines()
    assert 1 == check("--config-dir", broken.parent)
    assert 2 == len(capsys.readouterr().out.splitlines())


def test_warnings(broken, capsys):
    """A warning is told apart, and does not make the file wrong."""
    [shipped] = find(["exec-trace"])
    broken.write_text(shipped.yaml.read_text() + "metrics: {}\n")

    assert 0 == check(broken)
    out, err = capsys.readouterr()
    assert "mine: right; spans: exec\n" == out
    assert err.startswith(f"warning: {broken}:")
    assert 1 == err.count("metrics: is ignored")


def test_json(broken, capsys):
    """--json has everything, as data."""
    assert 1 == check("--json", broken)
    report = json.loads(capsys.readouterr().out)
    [program] = report["programs"]

    assert (False, "mine", str(broken)) == (report["ok"], program["program"], program["yaml"])
    assert [9, 10] == [problem["line"] for problem in program["problems"]]
    assert {"source", "line", "key", "what", "mend"} == set(program["problems"][0])
    assert [] == program["warnings"]


def test_missing_file(tmp_path):
    """A file that is not there is an error that says so."""
    with pytest.raises(CommandError, match=r"x\.yaml: is missing"):
        check(tmp_path / "x.yaml")


def test_not_utf8(broken, capsys):
    """A file that is no UTF-8 is a problem like others."""
    broken.write_bytes(b"a: \xff")

    assert 1 == check(broken)
    assert f"{broken}: not UTF-8: byte 3 is 0xff: save it as UTF-8" in capsys.readouterr().err


def test_directory_for_an_object(broken):
    """What is no file is as good as missing."""
    broken.with_name("mine.bpf.o").unlink()
    broken.with_name("mine.bpf.o").mkdir()

    with pytest.raises(CommandError, match=r"mine\.bpf\.o: is missing"):
        check(broken)


def test_schema(capsys):
    """--schema prints the JSON Schema."""
    assert 0 == check("--schema")
    assert schema_text() == capsys.readouterr().out
