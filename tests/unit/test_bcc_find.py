# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import pytest

from ebpftrace.bcc.find import load_bcc
from ebpftrace.errors import UnsupportedError


@pytest.fixture(autouse=True)
def without_bcc(monkeypatch):
    """No module bcc on the path, whatever this machine has, and none afterwards."""
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "dist-packages" not in entry])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "bcc"]:
        del sys.modules[name]


def package(folder, text):
    """A package `bcc`."""
    (folder / "bcc").mkdir()
    (folder / "bcc/__init__.py").write_text(text)
    return folder


def test_of_the_distribution(tmp_path):
    """What the distribution has is found from a virtual environment, and nothing beside it."""
    package(tmp_path, "from .table import BPF")
    (tmp_path / "bcc/table.py").write_text("class BPF: pass")
    module = load_bcc((tmp_path / "none", tmp_path))

    assert module is sys.modules["bcc"]
    assert "bcc.table" == module.BPF.__module__
    assert str(tmp_path) not in sys.path


def test_on_the_path(tmp_path, monkeypatch):
    """What is on the path comes first."""
    monkeypatch.syspath_prepend(package(tmp_path, "class BPF: pass"))

    assert str(tmp_path / "bcc/__init__.py") == load_bcc(()).__file__


def test_directory(tmp_path, monkeypatch):
    """A directory of that name on the path, without a module, hides nothing."""
    (tmp_path / "here/bcc").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "here")

    assert hasattr(load_bcc((package(tmp_path, "class BPF: pass"),)), "BPF")


def test_other_package(tmp_path, monkeypatch):
    """PyPI's package of that name is refused: it says where it lies and what to install."""
    monkeypatch.syspath_prepend(package(tmp_path, ""))

    with pytest.raises(UnsupportedError) as caught:
        load_bcc()

    assert f"the module 'bcc' of {tmp_path}/bcc/__init__.py has no class BPF" in str(caught.value)
    assert "pip uninstall bcc; " in caught.value.hint
    assert "apt-get install python3-bpfcc linux-headers-$(uname -r)" in caught.value.hint


def test_not_installed(tmp_path):
    """Without BCC, the error says what to install."""
    with pytest.raises(UnsupportedError, match="apt-get install python3-bpfcc"):
        load_bcc((tmp_path,))


@pytest.mark.parametrize("text", ["import nothing_of_that_name", "raise OSError('libbcc.so.0: cannot open')"])
def test_half_installed(tmp_path, text):
    """A package that cannot be imported is an error of the same kind, with the reason; nothing of it stays."""
    with pytest.raises(UnsupportedError, match=r"nothing_of_that_name|libbcc\.so\.0"):
        load_bcc((package(tmp_path, text),))
    assert "bcc" not in sys.modules
