# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
import subprocess
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
STEMS = sorted(source.name.removesuffix(".bpf.c") for source in (ROOT / "bpf").glob("*.bpf.c"))

# What the extras bring: a module that is of no use without one may import it at its top.
EXTRAS = {"flask", "waitress", "opentelemetry.exporter", "opentelemetry.instrumentation", "opentelemetry.proto"}

IMPORT_ALL = f"""
import ebpftrace, ebpftrace.errors, importlib, pkgutil
EXTRAS = {EXTRAS!r}
for module in pkgutil.walk_packages(ebpftrace.__path__, "ebpftrace."):
    if module.name.rpartition(".")[2] == "__main__":
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if not any(error.name == extra or error.name.startswith(extra + ".") for extra in EXTRAS):
            raise
    except ebpftrace.errors.UnsupportedError as error:
        if "pip install 'ebpftrace[" not in str(error):  # one of ours that says which extra it takes
            raise
"""

RESOURCES = """
import json
from importlib import metadata, resources
import ebpftrace, ebpftrace.context._publisher, ebpftrace.kernel._libbpf
names = [entry.name for entry in resources.files("ebpftrace.programs").iterdir()]
versions = [metadata.version("ebpftrace"), ebpftrace.__version__]
print(json.dumps({"names": names, "file": ebpftrace.__file__, "versions": versions}))
"""


def version_of(wheel):
    return wheel.name.split("-")[1]


@pytest.fixture(scope="module")
def names(dist):
    with zipfile.ZipFile(dist.wheel) as archive:
        return set(archive.namelist())


def test_programs(names):
    """Each BPF program is in the wheel as an object, with its description where it has one."""
    expected = {f"ebpftrace/programs/{stem}.bpf.o" for stem in STEMS}
    expected |= {f"ebpftrace/programs/{path.name}" for path in (ROOT / "bpf").glob("*.yaml")}

    assert STEMS
    assert expected <= names


def test_objects_have_btf_and_no_dwarf(dist):
    """The objects keep the BTF that loading needs, and not the debugging information."""
    with zipfile.ZipFile(dist.wheel) as archive:
        for stem in STEMS:
            image = archive.read(f"ebpftrace/programs/{stem}.bpf.o")

            assert image.startswith(b"\x7fELF")
            assert b".BTF.ext\0" in image
            assert b".debug_info" not in image


def test_headers(names):
    """The headers for writing one's own programs are in the wheel, and no other header is."""
    expected = {f"ebpftrace/programs/include/{path.name}" for path in (ROOT / "bpf/include").glob("*.h")}

    assert expected == {name for name in names if name.endswith(".h")}


def test_python(names):
    """Every module of the package is in the wheel, with py.typed and both compiled modules."""
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ebpftrace").rglob("*.py*")
        if path.suffix in {".py", ".pyi"} and not path.name.startswith("build_")
    }

    assert expected | {"ebpftrace/py.typed"} <= names
    assert [name for name in names if re.fullmatch(r"ebpftrace/kernel/_libbpf\..*so", name)]
    assert [name for name in names if re.fullmatch(r"ebpftrace/context/_publisher\..*so", name)]


def test_nothing_else(dist, names):
    """No source of a compiled part, build script, cache or test is in the wheel."""
    tops = {PurePosixPath(name).parts[0] for name in names}

    assert tops == {"ebpftrace", f"ebpftrace-{version_of(dist.wheel)}.dist-info"}
    assert [] == [name for name in names if re.search(r"\.c$|\.pyc$|CMakeLists|(^|/)build_\w+\.py$", name)]


def test_licence(names):
    """The licence text goes with the wheel."""
    assert [name for name in names if name.endswith("dist-info/licenses/LICENSE")]


def test_installed(dist, installed):
    """Installed, with no source tree near, the compiled modules load, the programs are found, the version is right."""
    found = json.loads(installed("-c", RESOURCES))

    assert "site-packages" in found["file"]
    assert {f"{stem}.bpf.o" for stem in STEMS} <= set(found["names"])
    assert [version_of(dist.wheel)] * 2 == found["versions"]


def test_declared_dependencies(installed):
    """Every module imports with the declared dependencies alone, but for those of an extra."""
    installed("-c", IMPORT_ALL)


def test_command(installed):
    """The command is installed and starts."""
    done = subprocess.run([installed.scripts / "ebpftrace", "--help"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "usage: ebpftrace" in done.stdout
