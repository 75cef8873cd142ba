# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from ebpftrace.decoders import pci

TEXT = """# a comment

0e11  Compaq Computer Corporation
	0001  PCI to EISA Bridge
	0002  PCI to ISA Bridge
		0e11 4030  a subsystem
8086  Intel Corporation
	1000  82542 Gigabit Ethernet Controller (Fiber)
C 00  Unclassified device
	05  Image coprocessor
C 01  Mass storage controller
	08  Non-Volatile memory controller
		02  NVM Express
"""


@pytest.fixture
def ids(monkeypatch, tmp_path):
    """A small pci.ids, which is the second of those that are looked for."""
    path = tmp_path / "pci.ids"
    path.write_text(TEXT)
    monkeypatch.setattr(pci, "PATHS", (str(tmp_path / "nothing"), str(path)))
    pci._ids.cache_clear()
    yield
    pci._ids.cache_clear()


@pytest.mark.parametrize(
    ("decode", "value", "text"),
    [
        (pci.pci_vendor, 0x8086, "Intel Corporation"),
        (pci.pci_vendor, "32902", "Intel Corporation"),
        (pci.pci_vendor, 0x0E11, "Compaq Computer Corporation"),
        (pci.pci_vendor, 1, "unknown pci vendor: 0x0001"),
        (pci.pci_vendor, "x", "unknown pci vendor: x"),
        (pci.pci_device, 0x80861000, "82542 Gigabit Ethernet Controller (Fiber)"),
        (pci.pci_device, 0x0E110001, "PCI to EISA Bridge"),
        (pci.pci_device, 0xDEADBEEF, "unknown pci device: 0xdeadbeef"),
        (pci.pci_class, 1, "Mass storage controller"),
        (pci.pci_class, 0xFD, "unknown pci class: 0xfd"),
        (pci.pci_subclass, 5, "Image coprocessor"),
        (pci.pci_subclass, 264, "Non-Volatile memory controller"),
        (pci.pci_subclass, 267, "unknown pci subclass: 0x0b (class 0x01)"),
        (pci.pci_subclass, 0xFD00, "unknown pci class: 0xfd"),
    ],
)
@pytest.mark.usefixtures("ids")
def test_pci(decode, value, text):
    """Numbers have the names of the list, small ones too; others say what they are."""
    assert text == decode(value)


def test_no_list(monkeypatch, tmp_path):
    """A machine without the list says so."""
    monkeypatch.setattr(pci, "PATHS", (str(tmp_path / "nothing"),))
    pci._ids.cache_clear()

    assert ["missing pci.ids db"] * 4 == [
        decode(5) for decode in (pci.pci_vendor, pci.pci_device, pci.pci_class, pci.pci_subclass)
    ]
    pci._ids.cache_clear()


def test_other_lists():
    """What the file has behind its lists belongs to none of them."""
    found = pci.parse_ids([*TEXT.splitlines(), "X 01  something", "\t01  else", "zz"])

    assert 2 == len(found.subclasses)
