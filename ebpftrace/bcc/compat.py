# SPDX-License-Identifier: Apache-2.0
"""Structures that an older BCC lacks for the headers of a newer kernel.

BCC compiles with a copy of the kernel's `bpf.h` of its own. From some releases on (6.4 has the first, 6.10 the last so
far) the kernel's inner headers take the size of structures that only the kernel's own copy has, and then no program
compiles. What those are is found by comparing the two, and the kernel's definitions are given to the compiler.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

HEADER = "ebpftrace_bcc_structs.h"
_MODULES = Path("/lib/modules")
_PLACES = ("source", "build")  # Debian's headers are in two packages
_BPF_H = "include/uapi/linux/bpf.h"
# those only whose content the kernel keeps to itself: whole, without other types, and of a few bytes
_OPAQUE = re.compile(
    r"^struct (bpf_\w+) \{\s*((?:__u(?:32|64)\s+(?:__opaque\[\d+\]|:64);\s*)+)\}([^;{}]*);", re.MULTILINE
)
_PLAIN = {"__u32": "unsigned int", "__u64": "unsigned long long"}


def flags(library: Path | None = None, modules: Path | None = None) -> list[str]:
    """Return what to compile BCC programs with, beside the directory of our headers; [] when nothing is missing.

    Args:
        library: BCC's, which has its headers in it; None = the one that this process has loaded.
        modules: where the running kernel's headers are looked for.
    """
    library = library or _loaded_library()
    header = kernel_header(modules or _MODULES / os.uname().release)
    if library is None or header is None:
        return []
    definitions = missing_structs(header.read_text(errors="replace"), library.read_bytes())
    return ["-include", HEADER, f"-DEBT_BCC_STRUCTS={' '.join(definitions)}"] if definitions else []


def kernel_header(modules: Path) -> Path | None:
    """Return the kernel's own bpf.h; None when its headers are not there."""
    return next((path for place in _PLACES if (path := modules / place / _BPF_H).is_file()), None)


def missing_structs(header: str, library: bytes) -> list[str]:
    """Return the definitions of opaque structures of the kernel's header that the library's does not have."""
    return [
        _one_line(f"struct {name} {{ {fields} }}{attributes};")
        for name, fields, attributes in _OPAQUE.findall(header)
        if f"struct {name} {{".encode() not in library
    ]


def _one_line(text: str) -> str:
    for name, plain in _PLAIN.items():
        text = text.replace(name, plain)
    return " ".join(text.split())


def _loaded_library() -> Path | None:
    """The file of BCC's library in this process."""
    with Path("/proc/self/maps").open() as maps:
        paths = (line.split(maxsplit=5)[-1].rstrip("\n") for line in maps if "/libbcc.so" in line)
        return next((Path(path) for path in paths if Path(path).is_file()), None)
