# SPDX-License-Identifier: Apache-2.0
"""The Pythons of the matrix: found, and each given a virtual environment with ebpftrace and the frameworks in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = (*(f"python3.{minor}" for minor in range(11, 15)), "python3.13t", "python3.14t")
_ASK = """
import json, platform, sys, sysconfig
print(json.dumps({"release": platform.python_version(), "threads": bool(sysconfig.get_config_var("Py_GIL_DISABLED"))}))
"""
_VERSIONS = """
import importlib.metadata as m, json, sys
print(json.dumps({d.metadata["Name"].lower(): d.version for d in m.distributions()}))
"""
_GIL = "import ebpftrace.context._publisher, sys; print(getattr(sys, '_is_gil_enabled', lambda: True)())"


class PythonError(Exception):
    """A Python cannot be used; the text says why."""


@dataclass(slots=True)
class Python:
    """One Python.

    Attributes:
        label: "3.13", "3.13t" where threads are free.
        release: "3.13.5".
        executable: of its virtual environment.
        missing: frameworks that could not be installed, and why.
        versions: of what is installed.
        gil: it has the lock on once ebpftrace is in it.
    """

    label: str
    release: str
    executable: str
    missing: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    gil: bool = True


def find(wanted):
    """Paths of the Pythons asked for, else of those on PATH."""
    return list(wanted) or [path for path in map(shutil.which, NAMES) if path]


def prepare(path, folder, *, install=True):
    """Make the virtual environment of a Python, or bring it up to date.

    Args:
        path: of the interpreter.
        folder: for the environments of all of them.
        install: also in one that is there already.

    Raises:
        PythonError: ebpftrace cannot be built with it.
    """
    facts = json.loads(_run([path, "-c", _ASK]))
    label = ".".join(facts["release"].split(".")[:2]) + ("t" if facts["threads"] else "")
    home = folder / label
    python = home / "venv/bin/python"
    found = Python(label, facts["release"], str(python))
    if install or not python.exists():
        _install(found, path, home)
    found.versions = json.loads(_run([python, "-c", _VERSIONS]))
    found.gil = _run([python, "-c", _GIL]).strip() == "True"
    return found


def _install(python, path, home):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if not Path(python.executable).exists():
        _run([path, "-m", "venv", home / "venv"])
    _run([*_pip(python.executable), *project["build-system"]["requires"]])
    # a build folder of its own: CMake keeps the paths of the environment that it built with
    _run([*_pip(python.executable), "--no-build-isolation", "-C", f"build-dir={home / 'cmake'}", f"{ROOT}[agent]"])
    _frameworks(python, project["project"]["optional-dependencies"]["contexts"])


def _frameworks(python, requirements):
    try:
        _run([*_pip(python.executable), *requirements])
    except PythonError:
        for requirement in requirements:  # which of them is it
            try:
                _run([*_pip(python.executable), "--only-binary", ":all:", requirement])
            except PythonError as error:
                python.missing[requirement.split(">")[0]] = str(error)


def _pip(python):
    return [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]


def _run(command):
    try:
        done = subprocess.run(
            list(map(str, command)), check=False, capture_output=True, text=True, cwd="/", timeout=1800
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PythonError(str(error)) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        told = next(
            (line for line in lines if line.lstrip().startswith(("ERROR", "error"))), lines[-1] if lines else ""
        )
        raise PythonError(f"{Path(str(command[0])).name}: {told.strip()[:300]}")
    return done.stdout
