# SPDX-License-Identifier: Apache-2.0
"""PCI devices by number, from the list of the PCI ID Project (https://pci-ids.ucw.cz)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.decoders.values import number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PATHS = (
    "/usr/share/misc/pci.ids",
    "/usr/share/hwdata/pci.ids",
    "/usr/share/pci.ids",
    "/usr/local/share/pci.ids",
    "/var/lib/pciutils/pci.ids",
)
_MISSING = "missing pci.ids db"


@dataclass(frozen=True, slots=True)
class PciIds:
    """Names by number; a device's is its vendor's and its own, a subclass's that of its class and its own."""

    vendors: dict[int, str] = field(default_factory=dict)
    devices: dict[tuple[int, int], str] = field(default_factory=dict)
    classes: dict[int, str] = field(default_factory=dict)
    subclasses: dict[tuple[int, int], str] = field(default_factory=dict)


def parse_ids(lines: Iterable[str]) -> PciIds:
    """Read a pci.ids file; lines that are none of the four kinds (comments, subsystems, interfaces) are passed over."""
    ids = PciIds()
    head, classes = -1, False
    for line in lines:
        text = line.rstrip("\n")
        inner = text.startswith("\t")
        if not text or text.startswith(("#", "\t\t")):
            continue
        if not inner:
            classes = text.startswith("C ")
        code, _, name = (text[2:] if classes and not inner else text.strip("\t")).partition("  ")
        try:
            key = int(code, 16)
        except ValueError:  # another list that the file has at its end
            head = -1
            continue
        if not inner:
            head = key
            (ids.classes if classes else ids.vendors)[key] = name
        elif head >= 0:
            (ids.subclasses if classes else ids.devices)[head, key] = name
    return ids


@functools.cache
def _ids() -> PciIds | None:
    """The first list that this machine has; read once, and only when somebody asks."""
    for path in PATHS:
        try:
            with Path(path).open(encoding="utf-8", errors="replace") as lines:
                return parse_ids(lines)
        except OSError:
            continue
    return None


def _decoder(what: str, digits: int, find: Callable[[PciIds, int], str | None]) -> Callable[[int | str], str]:
    """A decoder of one kind of number."""

    def decode(value: int | str) -> str:
        ids, code = _ids(), number(value)
        if ids is None:
            return _MISSING
        if code is None:
            return f"unknown pci {what}: {value}"
        return find(ids, code) or f"unknown pci {what}: 0x{code:0{digits}x}"

    return decode


def _subclass(ids: PciIds, code: int) -> str | None:
    known = ids.subclasses.get((code >> 8, code & 0xFF))
    if known is None and code >> 8 not in ids.classes:
        return f"unknown pci class: 0x{code >> 8:02x}"
    return known or f"unknown pci subclass: 0x{code & 0xFF:02x} (class 0x{code >> 8:02x})"


pci_vendor = _decoder("vendor", 4, lambda ids, code: ids.vendors.get(code))
pci_device = _decoder("device", 8, lambda ids, code: ids.devices.get((code >> 16, code & 0xFFFF)))
pci_class = _decoder("class", 2, lambda ids, code: ids.classes.get(code))
pci_subclass = _decoder("subclass", 4, _subclass)
