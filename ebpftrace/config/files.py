# SPDX-License-Identifier: Apache-2.0
"""Where a program's two files are: `<stem>.yaml`, which describes it, and `<stem>.bpf.o`, the object."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.config.problems import ConfigProblems, Problem, suggest
from ebpftrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

_YAML = (".yaml", ".yml")
_OBJECT = ".bpf.o"
_MAX_YAML_BYTES = 1 << 20  # of the kind that people write; a larger file is not what was meant


@dataclass(frozen=True, slots=True)
class ProgramFiles:
    """The two files of a program.

    Args:
        stem: of both ("sched-trace").
        yaml: its description.
        object: its compiled object.
    """

    stem: str
    yaml: Path
    object: Path


def find(
    names: Sequence[str] = (), directory: str | Path | None = None, paths: Sequence[str | Path] = ()
) -> list[ProgramFiles]:
    """Return the files of the programs that are asked for, in that order.

    Args:
        names: stems, looked for in `directory`; without one they are shipped programs, by stem or name.
        directory: with both files of each program.
        paths: of YAML files, each with its object beside it.

    Raises:
        ConfigError: a file is missing, or a program is asked for twice; says everything that is wrong.
    """
    found: list[ProgramFiles] = []
    errors: list[str] = []
    for name in names:
        try:
            found.append(_shipped(name) if directory is None else _in_directory(name, Path(directory)))
        except ConfigError as error:
            errors.append(str(error))
    for path in paths:
        try:
            found.append(_at(Path(path)))
        except ConfigError as error:
            errors.append(str(error))
    errors += _twice(found)
    if errors:
        raise ConfigError("\n".join(errors))
    return found


def all_shipped() -> list[ProgramFiles]:
    """Return the files of all programs that come with ebpftrace.

    Raises:
        ConfigError: one of them was not built.
    """
    from ebpftrace.programs import names

    return find(names())


def all_of(directory: Path) -> list[ProgramFiles]:
    """Return the files of all programs in a directory, by name.

    Raises:
        ConfigError: there are none, or one lacks its object.
    """
    if directory.is_dir() and not os.access(directory, os.R_OK | os.X_OK):
        raise ConfigError(f"{directory}: permission denied: allow this user to look into it")
    names = sorted(path.name.removesuffix(".yaml") for path in directory.glob("*.yaml"))
    if directory.is_dir() and not names:
        raise ConfigError(f"{directory}: has no YAML file: give --config-dir one with NAME.yaml and NAME.bpf.o")
    return find(names or [""], directory)


def read_text(path: Path) -> str:
    """Return what a YAML file says.

    Raises:
        ConfigProblems: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if size > _MAX_YAML_BYTES:
        what, mend = f"has {size} bytes, and {_MAX_YAML_BYTES} are the most", "is it a program's description?"
        raise ConfigProblems([Problem(path.name, 0, "", what, mend)])
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        raise ConfigProblems([Problem(path.name, 0, "", what, "save it as UTF-8")]) from error


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        ConfigProblems: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ConfigProblems:
    mend = "allow it to this user" if isinstance(error, PermissionError) else ""
    return ConfigProblems([Problem(path.name, 0, "", f"cannot be read: {error.strerror}", mend)])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError:
        raise ConfigError(f"{path}: permission denied: allow this user to look into {path.parent}") from None


def _shipped(name: str) -> ProgramFiles:
    from importlib.resources import files

    from ebpftrace import programs

    try:
        stem = programs.find(name).stem
    except ConfigError:
        known = [programs.find(each).stem for each in programs.names()]
        mend = suggest(name, known, "there are")
        raise ConfigError(
            f"{name}: no program of this name comes with ebpftrace: {mend}, or give --config-dir"
        ) from None
    folder = files("ebpftrace.programs")
    return _both(stem, Path(str(folder.joinpath(f"{stem}.yaml"))), Path(str(folder.joinpath(f"{stem}{_OBJECT}"))))


def _in_directory(name: str, folder: Path) -> ProgramFiles:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no directory: give --config-dir one with YAML files and objects")
    yaml, compiled = folder / f"{name}.yaml", folder / f"{name}{_OBJECT}"
    if _is_file(yaml) or _is_file(compiled):
        return _both(name, yaml, compiled)
    there = [path.name.removesuffix(".yaml") for path in folder.glob("*.yaml")]
    mend = suggest(name, there, "it has")
    raise ConfigError(f"{name}: neither {name}.yaml nor {name}{_OBJECT} is in {folder}: {mend}")


def _at(path: Path) -> ProgramFiles:
    if path.name.endswith(_OBJECT):
        yaml = path.with_name(path.name.removesuffix(_OBJECT) + ".yaml")
        raise ConfigError(f"{path}: is a program's object: give its description, {yaml}")
    if not _is_file(path) and path.is_dir():
        raise ConfigError(f"{path}: is a directory: give it as --config-dir, and programs of it as --config-names")
    if path.suffix not in _YAML:
        mend = "give a program's description, NAME.yaml"
        if not path.suffix:
            mend += f"; programs that come with ebpftrace are given by --config-names {path.name}"
        raise ConfigError(f"{path}: is no YAML file by its name: {mend}")
    return _both(path.stem, path, path.with_name(path.stem + _OBJECT))


def _both(stem: str, yaml: Path, compiled: Path) -> ProgramFiles:
    if not _is_file(yaml):
        if _is_file(compiled):
            raise ConfigError(
                f"{yaml}: is missing, though {compiled.name} is there: describe the program's records in it"
            )
        raise ConfigError(f"{yaml}: is missing: {_instead(yaml)}")
    if not _is_file(compiled):
        source = compiled.with_name(f"{stem}.bpf.c")
        mend = f"`ebpftrace build {source}`" if source.is_file() else f"`ebpftrace build` makes it from {source.name}"
        raise ConfigError(f"{compiled}: is missing, though {yaml.name} is there: {mend}")
    return ProgramFiles(stem, yaml, compiled)


def _instead(yaml: Path) -> str:
    """What its directory has."""
    if not yaml.parent.is_dir():
        return f"there is no directory {yaml.parent}"
    there = [path.name for pattern in _YAML for path in yaml.parent.glob(f"*{pattern}")]
    return suggest(yaml.name, there, f"{yaml.parent} has")


def _twice(found: Sequence[ProgramFiles]) -> list[str]:
    first: dict[str, ProgramFiles] = {}
    errors = []
    for files in found:
        other = first.setdefault(files.stem, files)
        if other is not files:
            errors.append(f"{files.yaml}: a program {files.stem!r} is asked for already, {other.yaml}: leave one out")
    return errors
