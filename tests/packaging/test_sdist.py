# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(dist):
    with tarfile.open(dist.sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_complete(names):
    """What a distribution builds and tests from is in the sdist."""
    expected = {"CMakeLists.txt", "LICENSE", "Makefile", "README.md", "pyproject.toml", "scripts/setup.sh"}
    for folder, pattern in (("bpf", "*.[ch]"), ("ebpftrace", "*.py"), ("ebpftrace", "*.[ch]"), ("tests", "test_*.py")):
        expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)}

    assert expected <= names


def test_clean(names):
    """Nothing built, cached or installed is in the sdist."""
    unwanted = r"(^|/)(build|dist|\.venv|\.git|__pycache__|\.\w+_cache|\.hypothesis)/|\.(so|o|pyc|whl)$"

    assert [] == [name for name in names if re.search(unwanted, name)]
