# SPDX-License-Identifier: Apache-2.0
"""Where a program's files are: `<stem>.yaml`, which describes it, and what is loaded.

That is `<stem>.bpf.o`, the object, or `<stem>.bcc.c`, a source that BCC compiles when it loads it, or both.
"""

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
_BCC = ".bcc.c"
_MAX_YAML_BYTES = 1 << 20  # of the kind that people write; a larger file is not what was meant


@dataclass(frozen=True, slots=True)
class ProgramFiles:
    """The files of a program; it has an object, or a source for BCC, or both.

    Args:
        stem: of all ("sched-trace").
        yaml: its description.
        object: its compiled object.
        bcc: its source in BCC's dialect of C.
    """

    stem: str
    yaml: Path
    object: Path | None
    bcc: Path | None = None


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
    return _all(stem, Path(str(folder.joinpath(f"{stem}.yaml"))))


def _in_directory(name: str, folder: Path) -> ProgramFiles:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no directory: give --config-dir one with YAML files and objects")
    if any(_is_file(folder / f"{name}{suffix}") for suffix in (".yaml", _OBJECT, _BCC)):
        return _all(name, folder / f"{name}.yaml")
    there = [path.name.removesuffix(".yaml") for path in folder.glob("*.yaml")]
    mend = suggest(name, there, "it has")
    raise ConfigError(f"{name}: neither {name}.yaml nor {name}{_OBJECT} is in {folder}: {mend}")


def _at(path: Path) -> ProgramFiles:
    for suffix, what in ((_OBJECT, "object"), (_BCC, "source")):
        if path.name.endswith(suffix):
            yaml = path.with_name(path.name.removesuffix(suffix) + ".yaml")
            raise ConfigError(f"{path}: is a program's {what}: give its description, {yaml}")
    if not _is_file(path) and path.is_dir():
        raise ConfigError(f"{path}: is a directory: give it as --config-dir, and programs of it as --config-names")
    if path.suffix not in _YAML:
        mend = "give a program's description, NAME.yaml"
        if not path.suffix:
            mend += f"; programs that come with ebpftrace are given by --config-names {path.name}"
        raise ConfigError(f"{path}: is no YAML file by its name: {mend}")
    return _all(path.stem, path)


def _all(stem: str, yaml: Path) -> ProgramFiles:
    compiled, bcc = (yaml.with_name(stem + suffix) for suffix in (_OBJECT, _BCC))
    there = [path for path in (compiled, bcc) if _is_file(path)]
    if not _is_file(yaml):
        if there:
            raise ConfigError(
                f"{yaml}: is missing, though {there[0].name} is there: describe the program's records in it"
            )
        raise ConfigError(f"{yaml}: is missing: {_instead(yaml)}")
    if not there:
        source = compiled.with_name(f"{stem}.bpf.c")
        mend = f"`ebpftrace build {source}`"
        if not source.is_file():
            mend = f"`ebpftrace build` makes it from {source.name}; for BCC, write {bcc.name}"
        raise ConfigError(f"{compiled}: is missing, though {yaml.name} is there: {mend}")
    return ProgramFiles(stem, yaml, compiled if compiled in there else None, bcc if bcc in there else None)


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
