# SPDX-License-Identifier: Apache-2.0
"""The distributions, built once a run, and an environment that has nothing but the wheel."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, cwd):
    """Run a command; what it said is in the failure when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pytest_collection_modifyitems(items):
    """Everything in this directory waits for a build: mark it, so that it can be left out."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.packaging)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def dist(tmp_path_factory):
    """The sdist, and the wheel that was built from it and not from the tree."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    [sdist] = out.glob("*.tar.gz")
    [wheel] = out.glob("*.whl")
    return SimpleNamespace(sdist=sdist, wheel=wheel)


@pytest.fixture(scope="session")
def installed(dist, tmp_path_factory):
    """Run Python code, from an empty directory, where the wheel and what it declares are all there is."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "venv", with_pip=True)
    python = home / "venv/bin/python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", dist.wheel, cwd=home)
    empty = home / "empty"
    empty.mkdir()

    def run_python(*arguments):
        return run(python, "-P", *arguments, cwd=empty)

    run_python.scripts = python.parent
    return run_python
