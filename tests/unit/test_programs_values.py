# SPDX-License-Identifier: Apache-2.0
"""What a program is given before it is loaded: addresses of symbols, knobs of the command line."""

from __future__ import annotations

import pytest

from ebpftrace.config.model import ProgramConfig
from ebpftrace.errors import ConfigError, UnsupportedError
from ebpftrace.programs import addresses
from ebpftrace.programs.knobs import effective_knobs


@pytest.fixture
def kallsyms(tmp_path, monkeypatch):
    """A file in place of /proc/kallsyms."""
    path = tmp_path / "kallsyms"
    monkeypatch.setattr(addresses, "_KALLSYMS", path)
    return path


def test_addresses(kallsyms):
    """The first of several symbols of a name counts; a module's name behind it does not matter."""
    kallsyms.write_text("ffff01 T one\nffff02 t two\t[module]\nffff03 t one\n")

    assert {"one": 0xFFFF01, "two": 0xFFFF02} == addresses.kernel_addresses(["one", "two"])


def test_no_addresses_wanted(kallsyms):
    """Without symbols the file is not asked for."""
    assert not kallsyms.exists()
    assert {} == addresses.kernel_addresses([])


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("ffff01 T other\n", ConfigError, "no symbol one"),
        ("0 T one\n", UnsupportedError, "shows zeros"),
        (None, UnsupportedError, "No such file"),
    ],
)
def test_no_addresses(kallsyms, text, error, words):
    """What is missing is said: the symbol, the right to see addresses, or the file."""
    if text is not None:
        kallsyms.write_text(text)

    with pytest.raises(error, match=words):
        addresses.kernel_addresses(["one"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [("7", 7), ("0x10", 16), ("TRUE", True), ("false", False), ("a,b", ["a", "b"]), ("/bin/sh", ["/bin/sh"])],
)
def test_knob(given, expected):
    """A knob that the file does not have is a number, a truth value, or a list of names."""
    assert {"knob": expected} == effective_knobs(ProgramConfig(), [("knob", given)], "some-trace")


@pytest.mark.parametrize(("there", "given"), [(5, "five"), (False, "no"), (None, "a b")])
def test_wrong_knob(there, given):
    """A value that is not of the knob's kind is refused, with the option that said it."""
    config = ProgramConfig(knobs={} if there is None else {"knob": there})

    with pytest.raises(ConfigError, match=f"--set some-trace.knob={given}"):
        effective_knobs(config, [("knob", given)], "some-trace")
