# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.decoders.symbols import KernelSymbols, Table, kernel_stack, kstack, ksym, parse_kallsyms

TEXT = """0000000000000000 A fixed_percpu_data
ffffffff81000000 T first
ffffffff81000000 T alias
ffffffff81000040 t .Llabel
ffffffff81000100 t second
ffffffffc0000000 t in_module	[mod]
ffffffff81000080 D data
"""
FIRST, DATA, SECOND, MODULE = 0xFFFFFFFF81000000, 0xFFFFFFFF81000080, 0xFFFFFFFF81000100, 0xFFFFFFFFC0000000
HIDDEN = "0000000000000000 T first\n0000000000000000 T second\n"


class Kernel:
    """Files of a kernel that tests change, and a time that they set."""

    def __init__(self, directory):
        self.kallsyms, self.modules = directory / "kallsyms", directory / "modules"
        self.kallsyms.write_text(TEXT)
        self.seconds = 0.0
        self.symbols = KernelSymbols(self.kallsyms, self.modules, lambda: self.seconds)


@pytest.fixture
def kernel(tmp_path):
    return Kernel(tmp_path)


def stack(*addresses):
    return struct.pack(f"={len(addresses)}Q", *addresses)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (FIRST, "first"),
        (DATA, "data"),
        (MODULE, "in_module"),
        (FIRST + 0x40, "unknown_addr:0xffffffff81000040"),
        (0, "unknown_addr:0x0"),
        (-1, "unknown_addr:0xffffffffffffffff"),
    ],
)
def test_ksym(kernel, address, name):
    """An address is a symbol only where that begins; of two the first one."""
    assert name == ksym(address, kernel.symbols)


def test_kstack(kernel):
    """A stack is a function a line, up to the first 0."""
    value = stack(SECOND + 5, FIRST, MODULE + 1, 5, 0, FIRST)

    assert "second\nfirst\nin_module\n??" == kstack(value, kernel.symbols)
    assert None is kstack(bytes(16), kernel.symbols)


def test_kernel_stack(kernel):
    """A stack has offsets, sizes and modules as the kernel prints them."""
    value = stack(SECOND + 5, DATA, MODULE + 0x1F, 5, 0, FIRST)
    lines = ["second+0x5/0x3efFff00", "first+0x80/0x80", "in_module+0x1f [mod]", "unknown_addr:0x5"]

    assert [line.lower() for line in lines] == kernel_stack(value, kernel.symbols).splitlines()
    assert None is kernel_stack(bytes(8), kernel.symbols)


def test_far_from_any_symbol(kernel):
    """An address that no function can reach is not the last function's."""
    assert "??" == kstack(stack(SECOND + (2 << 20)), kernel.symbols)


def test_new_symbols(kernel):
    """An address that is not known is looked for in a newer table, but not every time."""
    assert "unknown_addr:0x5" == ksym(5, kernel.symbols)
    kernel.kallsyms.write_text(TEXT + "0000000000000005 T new\n")
    assert "unknown_addr:0x5" == ksym(5, kernel.symbols)

    kernel.seconds = 1.0
    assert "new" == ksym(5, kernel.symbols)


def test_nothing_new(kernel):
    """While reading again brings nothing new, it is done ever more rarely."""
    reads = []
    parse = kernel.symbols._parse
    kernel.symbols._parse = lambda: reads.append(kernel.seconds) or parse()
    for second in range(600):
        kernel.seconds = float(second)
        ksym(second * 16, kernel.symbols)

    assert [0, 1, 3, 7, 15, 31] == reads[:6]
    assert 16 > len(reads)


def test_modules(kernel):
    """When a module came, addresses that seemed to be known are looked up again."""
    address = SECOND + 0x1000
    assert "second" == kstack(stack(address), kernel.symbols)
    kernel.kallsyms.write_text(TEXT + f"{address:016x} t late\t[other]\n")
    kernel.modules.write_text("other 16384 0 - Live 0x0\n")
    assert "second" == kstack(stack(address), kernel.symbols)

    kernel.seconds = 1.0
    assert "late+0x1/0x3effef00 [other]" == kernel_stack(stack(address + 1), kernel.symbols)


def test_hidden_addresses(kernel, caplog):
    """Without the capability addresses stay numbers, and the log says so once."""
    kernel.kallsyms.write_text(HIDDEN)
    with caplog.at_level(logging.WARNING, "ebpftrace.decoders"):
        results = [ksym(FIRST, kernel.symbols), kstack(stack(FIRST), kernel.symbols)]
        kernel.seconds = 1000.0
        results.append(kernel_stack(stack(FIRST), kernel.symbols))

    assert ["unknown_addr:0xffffffff81000000"] * 3 == results
    assert 1 == len(caplog.records)
    assert "CAP_SYSLOG" in caplog.text


def test_privileges_dropped(kernel, caplog):
    """What was read before privileges were dropped stays known."""
    kernel.symbols.prepare()
    kernel.kallsyms.write_text(HIDDEN)
    kernel.seconds = 1000.0

    assert "unknown_addr:0x7" == ksym(7, kernel.symbols)
    assert "first" == ksym(FIRST, kernel.symbols)
    assert "" == caplog.text


def test_no_kallsyms(kernel):
    """A kernel without the file is one whose addresses are not known."""
    kernel.kallsyms.unlink()

    assert "unknown_addr:0x1" == kstack(stack(1), kernel.symbols)


@given(st.lists(st.text(max_size=60)))
def test_any_kallsyms(lines):
    """Any text can be parsed; addresses are sorted, each once."""
    table = parse_kallsyms(lines)

    assert sorted(set(table.addresses)) == list(table.addresses)
    assert len(table.names) == len(table)


@given(st.sets(st.integers(1, (1 << 64) - 1), max_size=20), st.integers(0, (1 << 64) - 1))
def test_any_address(addresses, address):
    """The symbol around an address is the nearest one at or below it."""
    addresses = sorted(addresses)
    found = Table(array("Q", addresses), [str(a) for a in addresses]).around(address)
    below = [a for a in addresses if address - (1 << 20) <= a <= address]

    assert (found is None) == (not below)
    if found is not None:
        assert (str(below[-1]), address - below[-1]) == found[:2]


@given(st.binary(max_size=80))
def test_any_stack(data):
    """Any bytes are a stack."""
    symbols = KernelSymbols("/nonexistent", "/nonexistent")

    assert (kstack(data, symbols) is None) == (kernel_stack(data, symbols) is None)
