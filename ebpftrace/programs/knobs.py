# SPDX-License-Identifier: Apache-2.0
"""Knobs of an object: numbers in its read-only data, and hash maps that are lists of names."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Protocol

from ebpftrace.errors import BpfError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ebpftrace.config import ProgramConfig
    from ebpftrace.kernel.maps import Map
    from ebpftrace.kernel.object import BpfObject

Knobs = dict[str, bool | int | list[str]]

COMM_BYTES = 15
"""What the kernel keeps of a task's name: TASK_COMM_LEN without the NUL."""

_LOADERS = ("ebt_", "kaddr_", "has_")  # variables that the loader sets


class HasMaps(Protocol):
    """A loaded program, whoever loaded it."""

    name: str

    def map(self, name: str) -> Map:
        """Return one of its maps; KeyError when there is none."""


def set_numbers(obj: BpfObject, knobs: Mapping[str, bool | int | Sequence[str]], *, known_only: bool = False) -> None:
    """Set the numbers and booleans among `knobs`, before the object is loaded. For a list: whether it has entries.

    Args:
        obj: opened.
        knobs: by the name of the variable; lists are looked at as `has_<name>`.
        known_only: leave out what the object has no variable for.

    Raises:
        ConfigError: the object has no such knob, or the value does not fit into it.
    """
    present = obj.btf.variables(".rodata")
    for name, value in knobs.items():
        if not isinstance(value, bool | int):
            if f"has_{name}" in present:
                obj.set_rodata(f"has_{name}", bool(value))
            continue
        if name not in present and known_only:
            continue
        try:
            obj.set_rodata(name, value)
        except KeyError:
            known = ", ".join(sorted(each for each in present if not each.startswith(_LOADERS))) or "none"
            raise ConfigError(f"the program {obj.name!r} has no knob {name!r}; it has {known}") from None
        except OverflowError:
            raise ConfigError(
                f"the knob {name!r} of {obj.name!r} has {present[name].size * 8} bits, too few for {value}"
            ) from None


def fill_lists(obj: HasMaps, knobs: Mapping[str, bool | int | Sequence[str]]) -> None:
    """Put the lists among `knobs` into the maps of their names, once the object is loaded.

    An entry without a slash is a command's name, of which the kernel keeps 15 bytes, so no more are compared.

    Raises:
        ConfigError: there is no such map, or an entry does not fit.
    """
    for name, value in knobs.items():
        if isinstance(value, bool | int):
            continue
        try:
            target = obj.map(name)
        except KeyError:
            raise ConfigError(f"the program {obj.name!r} has no map {name!r} to put a list into") from None
        for entry in value:
            name_or_path = os.fsencode(entry)  # from a command line, in whatever bytes
            key = name_or_path if "/" in entry else name_or_path[:COMM_BYTES]
            if len(key) >= target.key_size:
                raise ConfigError(f"{name}: {entry!r} is longer than {target.key_size - 1} bytes")
            try:
                target.update(key.ljust(target.key_size, b"\0"), b"\1".ljust(target.value_size, b"\0"))
            except BpfError as error:
                raise ConfigError(f"{name}: {entry!r} cannot be added: {error}") from error


def effective_knobs(config: ProgramConfig, overrides: Sequence[tuple[str, str]], stem: str) -> Knobs:
    """Return the knobs of a file, with those of the command line over them.

    Raises:
        ConfigError: a value on the command line is not of the kind that the file has.
    """
    knobs: Knobs = dict(config.knobs)
    for name, text in overrides:
        knobs[name] = _parse_knob(text, f"--set {stem}.{name}={text}", example=knobs.get(name))
    return knobs


def _parse_knob(text: str, where: str, *, example: bool | int | list[str] | None) -> bool | int | list[str]:
    if isinstance(example, list):
        return [word.strip() for word in text.split(",") if word.strip()]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text, 0)
    except ValueError:
        if example is None and re.fullmatch(r"[\w./,+-]+", text):
            return [word for word in text.split(",") if word]
        raise ConfigError(f"{where}: give a whole number, true or false") from None
