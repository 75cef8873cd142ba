# SPDX-License-Identifier: Apache-2.0
"""Rules that hold for every file of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DUAL = "GPL-2.0-only OR BSD-2-Clause"  # the kernel asks it of a program; the headers go into programs
PICTURES = {".gif", ".ico", ".jpg", ".png", ".webp", ".woff2"}
COMPILED = {".a", ".gz", ".o", ".pyc", ".pyd", ".so", ".whl", ".xz", ".zip"}
MAX_BYTES = 1 << 20
MAX_LINES = 500

# Each in two parts, or this file would break its own rule
MACHINE_PATHS = re.compile(
    "|".join(["/" + "root/", "/" + "home/(?!app|user)[a-z]", "/" + r"work/(main|shared)", "/Users" + "/"])
)


@pytest.fixture(scope="module")
def files():
    """What is in the repository, or would be with the next commit."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git work tree, so there is no list of its files")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = filter(None, done.stdout.split("\0"))
    return [path for name in names if (path := ROOT / name).is_file()]


@pytest.fixture(scope="module")
def texts(files):
    return {path: path.read_bytes().decode() for path in files if b"\0" not in path.read_bytes()[:8192]}


def named(paths):
    """Paths as a failure should show them."""
    return [path.relative_to(ROOT).as_posix() for path in paths]


def spdx_line(text):
    """The licence expression of the first line, or of the second when the first is a #! line."""
    lines = text.split("\n", 2)
    line = lines[1] if lines[0].startswith("#!") and len(lines) > 1 else lines[0]
    found = re.fullmatch(r"(?:#|//|/\*|<!--) SPDX-License-Identifier: (.+?)(?: \*/| -->)?", line)
    return found and found[1]


def is_bpf(path):
    """A program, of libbpf's or BCC's dialect, or a header that programs include."""
    return path.relative_to(ROOT).parts[0] == "bpf" or {".bpf", ".bcc"} & set(path.suffixes)


def test_spdx(texts):
    """Every source says its licence where it starts: the BPF sources both of theirs, the rest Apache-2.0."""
    sources = {".c", ".h", ".py", ".pyi", ".sh"}
    wrong = [
        path
        for path, text in texts.items()
        if path.suffix in sources or path.name in {"CMakeLists.txt", "Makefile"}
        if spdx_line(text) != (DUAL if is_bpf(path) else "Apache-2.0")
    ]

    assert [] == named(wrong)


def test_no_binaries(files, texts):
    """Nothing compiled or packed is in the repository; test data and pictures are all its binaries."""
    compiled = [path for path in files if path.suffix in COMPILED or path.read_bytes()[:4] == b"\x7fELF"]
    data = ROOT / "tests/data"
    others = [path for path in files if path not in texts and path.suffix not in PICTURES and data not in path.parents]

    assert [] == named(compiled)
    assert [] == named(others)


def test_sizes(files):
    """No file is large, and no Python module longer than a reader can hold."""
    large = [path for path in files if path.stat().st_size > MAX_BYTES]
    long = [path for path in files if path.suffix == ".py" and path.read_bytes().count(b"\n") > MAX_LINES]

    assert [] == named(large)
    assert [] == named(long)


def test_no_machine_paths(texts):
    """No file names a path of the machine that it was written on."""
    found = {
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATHS.search(line)
    }

    assert set() == found


def test_text_form(texts):
    """Text ends with one line feed, has no carriage returns and no spaces at the ends of lines."""
    generated = {".json", ".jsonl", ".svg"}
    wrong = [
        path
        for path, text in texts.items()
        if path.suffix not in generated and text
        if not text.endswith("\n") or text.endswith("\n\n") or "\r" in text or re.search(r"[ \t]$", text, re.MULTILINE)
    ]

    assert [] == named(wrong)


def test_scripts(files):
    """Every script with a #! line can be run, and its shell understands it."""
    scripts = [path for path in files if path.read_bytes().startswith(b"#!")]

    assert [] == named(path for path in scripts if not os.access(path, os.X_OK))
    for script in scripts:
        if b"bash" in script.read_bytes().split(b"\n", 1)[0]:
            done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


def test_changelog_fragments(files):
    """A fragment of the changelog has a name that the release tool knows and one paragraph."""
    fragments = [path for path in files if path.parent.name == "changelog.d" and path.name != "README.md"]
    form = re.compile(r"[a-z0-9-]+\.(added|changed|fixed|removed)\.md")

    assert [] == named(path for path in fragments if not form.fullmatch(path.name))
    assert [] == named(path for path in fragments if "\n\n" in path.read_text() or not path.read_text().strip())
