# SPDX-License-Identifier: Apache-2.0
"""Where programs' files are found, and what is said of missing ones."""

from __future__ import annotations

import pytest

from ebpftrace.config.files import ProgramFiles, all_of, all_shipped, find, read_text
from ebpftrace.errors import ConfigError
from ebpftrace.programs import names


@pytest.fixture
def folder(tmp_path):
    """A directory with one whole program, one without its object, one without its YAML."""
    for name in ("good.yaml", "good.bpf.o", "no-object.yaml", "no-object.bpf.c", "no-yaml.bpf.o"):
        (tmp_path / name).write_text("")
    return tmp_path


def message(*arguments):
    """What is said, with the directory left out."""
    with pytest.raises(ConfigError) as caught:
        find(*arguments)
    return str(caught.value)


def test_by_name(folder):
    """A name is looked for in the directory."""
    assert [ProgramFiles("good", folder / "good.yaml", folder / "good.bpf.o")] == find(["good"], folder)


def test_by_path(folder):
    """A YAML file has its object beside it; names come before paths."""
    (folder / "other.yml").write_text("")
    (folder / "other.bpf.o").write_text("")
    found = find(["good"], folder, [folder / "other.yml"])

    assert ["good", "other"] == [files.stem for files in found]
    assert folder / "other.bpf.o" == found[1].object


def test_source_for_bcc(folder):
    """A source for BCC does in place of an object, or is beside it."""
    for name in ("good.bcc.c", "bcc-only.bcc.c", "bcc-only.yaml", "described.bcc.c"):
        (folder / name).write_text("")
    good, only = find(["good", "bcc-only"], folder)

    assert (folder / "good.bpf.o", folder / "good.bcc.c") == (good.object, good.bcc)
    assert (None, folder / "bcc-only.bcc.c") == (only.object, only.bcc)
    assert "described.yaml: is missing, though described.bcc.c is there" in message(["described"], folder)


def test_neither_object_nor_source(folder):
    """Where neither is there, nor a source of the one, both ways are told."""
    (folder / "alone.yaml").write_text("")

    assert message(["alone"], folder).endswith("makes it from alone.bpf.c; for BCC, write alone.bcc.c")


@pytest.mark.parametrize("name", ["exec", "exec-trace"])
def test_shipped(name):
    """Without a directory, names are those of shipped programs, by name or by stem."""
    [found] = find([name])

    assert ("exec-trace", "exec-trace.yaml", "exec-trace.bpf.o") == (found.stem, found.yaml.name, found.object.name)
    assert found.object.read_bytes().startswith(b"\x7fELF")


def test_all():
    """All shipped programs can be asked for."""
    assert list(names()) == [files.stem.removesuffix("-trace") for files in all_shipped()]


def test_all_of_a_directory(folder):
    """All programs of a directory can be asked for; one that lacks its object is told."""
    with pytest.raises(ConfigError, match=r"no-object\.bpf\.o: is missing"):
        all_of(folder)
    (folder / "no-object.yaml").unlink()

    assert ["good"] == [files.stem for files in all_of(folder)]
    with pytest.raises(ConfigError, match="has no YAML file"):
        all_of(folder / "..")
    with pytest.raises(ConfigError, match="is no directory"):
        all_of(folder / "nothing")


def test_missing(folder):
    """A missing file is named, with what to do about it, and all of them at once."""
    lines = message(["no-object", "no-yaml", "godo"], folder, [folder / "go.yaml", folder / "nowhere" / "x.yaml"])

    mend = f"`ebpftrace build {folder}/no-object.bpf.c`"
    assert [
        f"{folder}/no-object.bpf.o: is missing, though no-object.yaml is there: {mend}",
        f"{folder}/no-yaml.yaml: is missing, though no-yaml.bpf.o is there: describe the program's records in it",
        f"godo: neither godo.yaml nor godo.bpf.o is in {folder}: did you mean 'good'?",
        f"{folder}/go.yaml: is missing: did you mean 'good.yaml'?",
        f"{folder}/nowhere/x.yaml: is missing: there is no directory {folder}/nowhere",
    ] == lines.splitlines()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("good.bpf.o", "is a program's object: give its description, "),
        ("good.bcc.c", "is a program's source: give its description, "),
        (".", "is a directory: give it as --config-dir"),
        ("no-object.bpf.c", "is no YAML file by its name"),
    ],
)
def test_not_a_yaml_file(folder, name, told):
    """What is no YAML file is told for what it is."""
    assert told in message([], None, [folder / name])


def test_unknown_shipped():
    """A name that is not shipped brings those that are."""
    assert message(["exec-trce"]).startswith(
        "exec-trce: no program of this name comes with ebpftrace: did you mean 'exec-trace'?"
    )


def test_twice(folder):
    """One program cannot be asked for twice, for its spans and counters would be mixed up."""
    assert "a program 'good' is asked for already" in message(["good"], folder, [folder / "good.yaml"])


def test_name_for_a_path():
    """Who gives a program's name where a path belongs is told how to give names."""
    said = message([], None, ["exec-trace"])

    assert "programs that come with ebpftrace are given by --config-names exec-trace" in said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a: \xff", "not UTF-8: byte 3 is 0xff: save it as UTF-8"),
        (b"#" * ((1 << 20) + 1), "has 1048577 bytes, and 1048576 are the most: is it a program's description?"),
    ],
)
def test_no_description(tmp_path, data, said):
    """What is no description of a program is not parsed: that could take minutes."""
    (tmp_path / "some.yaml").write_bytes(data)

    with pytest.raises(ConfigError) as caught:
        read_text(tmp_path / "some.yaml")
    assert f"some.yaml: {said}" == str(caught.value)


def test_no_permission(folder, monkeypatch):
    """A directory that may not be looked into is said, and how to mend it."""

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.is_file", refuse)

    assert f"permission denied: allow this user to look into {folder}" in message(["good"], folder)
