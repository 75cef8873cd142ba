# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace build`: a program's C source into the object that the agent loads."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.errors import CommandError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_SUFFIX = ".bpf.c"
_NEWEST, _OLDEST = 22, 15  # clang 14 crashes on relocatable reads of bit fields
_ARCHES = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm64", "arm64": "arm64"}
_FLAGS = ("-g", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-target", "bpf", "-mcpu=v3")
_VMLINUX = Path("/sys/kernel/btf/vmlinux")
_SBIN = ("/usr/sbin", "/sbin", "/usr/local/sbin")  # where bpftool is, and a user's PATH often is not
_HINTS = {
    "bpf/bpf_": "libbpf's headers are missing: apt-get install libbpf-dev (Fedora: libbpf-devel)",
    "linux/": "the kernel's headers for user space are missing: apt-get install linux-libc-dev",
    "asm/": "the kernel's headers for user space are missing: apt-get install linux-libc-dev",
}
_MISSING = re.compile(r"'([^']+)' file not found")


class BuildCommand:
    """Compile a BPF program, NAME.bpf.c, into NAME.bpf.o.

    clang (15 or newer) finds our headers (`#include "ebpftrace.bpf.h"`) by itself. DWARF is removed, BTF stays. A
    program that includes vmlinux.h gets one of the running kernel, by bpftool, unless there is one where it looks.
    """

    name = "build"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("source", metavar="SOURCE", type=Path, help="the program: NAME.bpf.c")
        parser.add_argument(
            "-o", "--output", metavar="OBJECT", type=Path, help="where to put the object (default: beside the source)"
        )
        parser.add_argument(
            "-I", dest="include", metavar="DIR", action="append", default=[], help="look for headers there first"
        )
        parser.add_argument(
            "-D", dest="define", metavar="NAME[=VALUE]", action="append", default=[], help="define a macro"
        )
        parser.add_argument("--clang", metavar="PATH", help="the compiler (default: $CLANG, else the newest there is)")
        parser.add_argument("--werror", action="store_true", help="take warnings as errors")

    def run(self, args: argparse.Namespace) -> int:
        """Compile.

        Raises:
            CommandError: no compiler, or the program does not compile.
        """
        source: Path = args.source
        if not source.is_file():
            raise CommandError(f"{source}: is no file: give a program's C source, NAME.bpf.c")
        if args.output is None and not source.name.endswith(_SUFFIX):
            raise CommandError(f"{source}: is not called NAME.bpf.c: rename it, or name the object by -o NAME.bpf.o")
        output = args.output or source.with_name(source.name.removesuffix(_SUFFIX) + ".bpf.o")
        clang = _find_clang(args.clang or os.environ.get("CLANG"))
        flags = [*_flags(args.include), *(f"-D{define}" for define in args.define)]
        with tempfile.TemporaryDirectory(prefix="ebpftrace-build-") as folder:
            if _lacks_vmlinux(clang, flags, source):
                _write_vmlinux(Path(folder, "vmlinux.h"))
                flags += ["-isystem", folder]  # its warnings are nobody's to mend
            _compile(clang, [*flags, *(["-Werror"] if args.werror else [])], source, output, Path(folder, "object"))
        print(output)
        yaml = output.with_name(output.name.removesuffix(".o").removesuffix(".bpf") + ".yaml")
        if yaml.is_file():
            print(f"To see whether {yaml} fits it: ebpftrace check {yaml}", file=sys.stderr)
        return 0


def _find_clang(wanted: str | None) -> str:
    names = [wanted] if wanted else [*(f"clang-{number}" for number in range(_NEWEST, _OLDEST - 1, -1)), "clang"]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise CommandError(
            f"{wanted or 'clang'}: there is no such program: install clang {_OLDEST} or newer "
            "(apt-get install clang-19, or the newest there is), or name it by --clang"
        )
    version = _run([found, "-dumpversion"]).stdout.strip()
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) < _OLDEST:
        raise CommandError(
            f"{found}: is version {version or 'unknown'}, and the programs need clang {_OLDEST} or newer: "
            "apt-get install clang-19, or name another by --clang"
        )
    return found


def _flags(include: Sequence[str]) -> list[str]:
    machine = platform.machine().lower()
    if machine not in _ARCHES:
        raise CommandError(f"ebpftrace knows x86-64 and aarch64, this is {machine}")
    flags = [*_FLAGS, f"-D__TARGET_ARCH_{_ARCHES[machine]}", *(f"-I{folder}" for folder in include)]
    flags.append(f"-I{_own_headers()}")
    if shutil.which("pkg-config"):  # a libbpf that is not the system's
        flags += _run(["pkg-config", "--cflags", "libbpf"]).stdout.split()
    # -target bpf forgets where this machine's own headers are
    multiarch = Path("/usr/include", sysconfig.get_config_var("MULTIARCH") or f"{machine}-linux-gnu")
    return [*flags, "-idirafter", str(multiarch)] if multiarch.is_dir() else flags


def _own_headers() -> Path:
    from importlib.resources import files

    header = Path(str(files("ebpftrace.programs").joinpath("include").joinpath("ebpftrace.bpf.h")))
    if not header.is_file():
        raise CommandError(f"{header}: is missing: build the package (pip install .)")
    return header.parent


def _lacks_vmlinux(clang: str, flags: Sequence[str], source: Path) -> bool:
    """Does the program include vmlinux.h, itself or by another header, and is there none?"""
    # -MG names headers that are not there as they were written, and the others with their directories
    done = _run([clang, *flags, "-M", "-MG", str(source)])
    return "vmlinux.h" in done.stdout.replace("\\\n", " ").split()


def _write_vmlinux(path: Path) -> None:
    bpftool = shutil.which("bpftool") or shutil.which("bpftool", path=os.pathsep.join(_SBIN))
    mend = "or put a vmlinux.h where the program looks for it (-I DIR)"
    if bpftool is None:
        raise CommandError(
            "vmlinux.h: there is none, and no bpftool to make it: apt-get install bpftool "
            f"(Ubuntu: linux-tools-generic), {mend}"
        )
    with path.open("w", encoding="utf-8") as header:
        command = [bpftool, "btf", "dump", "file", str(_VMLINUX), "format", "c"]
        done = subprocess.run(command, stdout=header, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603 - ours
    if done.returncode:
        raise CommandError(f"vmlinux.h: bpftool cannot make it from {_VMLINUX}: {done.stderr.strip()}; {mend}")


def _compile(clang: str, flags: Sequence[str], source: Path, output: Path, temporary: Path) -> None:
    """Compile and strip, in a file of its own: what does not compile leaves an older object alone."""
    colour = ["-fcolor-diagnostics"] if sys.stderr.isatty() else []
    done = _run([clang, *flags, *colour, "-c", str(source), "-o", str(temporary)])
    sys.stderr.write(done.stderr)
    if done.returncode:
        missing = _MISSING.search(done.stderr)
        hint = next((hint for start, hint in _HINTS.items() if missing and missing[1].startswith(start)), "")
        if "redefinition" in done.stderr and "vmlinux.h" in done.stderr:
            hint = "vmlinux.h and ebpftrace.bpf.h declare the same types: include one of them"
        if missing and not hint:
            hint = f"name the directory that {missing[1]} is in by -I"
        raise CommandError(f"{source}: {Path(clang).name} cannot compile it" + (f": {hint}" if hint else ""))
    _strip(clang, temporary)
    try:
        shutil.copyfile(temporary, output)
    except OSError as error:
        raise CommandError(f"{output}: cannot be written: {error.strerror}") from error


def _strip(clang: str, path: Path) -> None:
    """Remove DWARF, which nothing reads; without llvm-strip the object is only larger."""
    suffix = Path(clang).name.removeprefix("clang")
    strip = shutil.which(f"llvm-strip{suffix}") or shutil.which("llvm-strip")
    if strip is None:
        print(f"note: no llvm-strip{suffix}, so the object keeps its DWARF", file=sys.stderr)
        return
    done = _run([strip, "-g", str(path)])
    if done.returncode:
        raise CommandError(f"{Path(strip).name} cannot remove the DWARF: {done.stderr.strip()}")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # arguments are a list, no shell reads them
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
