# SPDX-License-Identifier: Apache-2.0
"""The catalogue of shipped programs.

Each is a pair of files beside this one, put there by the build: `<stem>.bpf.o` and `<stem>.yaml`. The core object has
no YAML: it makes no spans, it owns the maps that the others share.
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


@dataclass(frozen=True, slots=True)
class ShippedProgram:
    """One shipped program, by its stem."""

    name: str

    def object_bytes(self) -> bytes:
        """Return the compiled object.

        Raises:
            UnsupportedError: the package was put on the path without being built.
        """
        path = importlib.resources.files("ebpftrace.programs").joinpath(f"{self.name}.bpf.o")
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise UnsupportedError(
                f"the BPF program {self.name!r}", f"{path} is missing", "build the package: pip install ."
            ) from None

    def config(self) -> ProgramConfig:
        """Return what its YAML file says."""
        from ebpftrace.config import load_program_config

        path = importlib.resources.files("ebpftrace.programs").joinpath(self.name + _SUFFIX)
        return load_program_config(path.read_text(), source=f"{self.name}{_SUFFIX}")


@functools.cache
def names() -> tuple[str, ...]:
    """Return the stems of all shipped programs that make spans."""
    files = importlib.resources.files("ebpftrace.programs").iterdir()
    return tuple(sorted(f.name.removesuffix(_SUFFIX) for f in files if f.name.endswith(_SUFFIX)))


def find(name: str) -> ShippedProgram:
    """Return a shipped program.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in names():
        raise ConfigError(f"there is no program {name!r}; there are: {', '.join(names())}")
    return ShippedProgram(name)
