# SPDX-License-Identifier: Apache-2.0
"""The catalogue of shipped programs.

Each is a pair of files beside this one, put there by the build: `<stem>.bpf.o` and `<stem>.yaml`. A stem such as
"sched-trace" is what files and the agent call a program; its name, "sched", is what applications and spans do. The core
object has no YAML: it makes no spans, it owns the maps that the others share.
"""

from __future__ import annotations

import functools
import importlib.resources
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebpftrace.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from ebpftrace.config import ProgramConfig

CORE = "process"
_SUFFIX = ".yaml"
_ROLE = "-trace"


def program_name(stem: str) -> str:
    """Return what applications call the program of this stem."""
    return stem.removesuffix(_ROLE)


@dataclass(frozen=True, slots=True)
class ShippedProgram:
    """One shipped program, by the stem of its files."""

    stem: str

    @property
    def name(self) -> str:
        """What applications and spans call it."""
        return program_name(self.stem)

    def object_bytes(self) -> bytes:
        """Return the compiled object.

        Raises:
            UnsupportedError: the package was put on the path without being built.
        """
        path = importlib.resources.files("ebpftrace.programs").joinpath(f"{self.stem}.bpf.o")
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise UnsupportedError(
                f"the BPF program {self.name!r}", f"{path} is missing", "build the package: pip install ."
            ) from None

    def config(self) -> ProgramConfig:
        """Return what its YAML file says."""
        from ebpftrace.config import load_program_config

        path = importlib.resources.files("ebpftrace.programs").joinpath(self.stem + _SUFFIX)
        return load_program_config(path.read_text(), source=self.stem + _SUFFIX)


@functools.cache
def _stems() -> dict[str, str]:
    """The stem of each shipped program that makes spans, by name."""
    files = importlib.resources.files("ebpftrace.programs").iterdir()
    stems = sorted(f.name.removesuffix(_SUFFIX) for f in files if f.name.endswith(_SUFFIX))
    return {program_name(stem): stem for stem in stems}


def names() -> tuple[str, ...]:
    """Return the names of all shipped programs that make spans."""
    return tuple(_stems())


def find(name: str) -> ShippedProgram:
    """Return a shipped program, by its name or its stem.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return ShippedProgram(_stems()[program_name(name)])
    except KeyError:
        raise ConfigError(f"there is no program {name!r}; there are: {', '.join(names())}") from None
