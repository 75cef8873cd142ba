# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

from ebpftrace.decoders import devices
from ebpftrace.decoders.devices import majorminor, parse_partitions
from ebpftrace.decoders.lookups import Cache, Snapshot

TEXT = """major minor  #blocks  name

 254        0  268435456 vda
 259        1     524288 nvme0n1p1
"""


def test_parse_partitions():
    """Each line but the head is a device."""
    assert {(254, 0): "vda", (259, 1): "nvme0n1p1"} == parse_partitions(TEXT)


def test_majorminor(monkeypatch, tmp_path):
    """A device number is what `stat` has: the major between two parts of the minor."""
    (tmp_path / "partitions").write_text(TEXT)
    monkeypatch.setattr(devices, "PARTITIONS", tmp_path / "partitions")
    monkeypatch.setattr(devices, "_devices", Cache(Snapshot(devices._partitions).get, found_s=1))

    assert "vda" == majorminor(254 << 8)
    assert "nvme0n1p1" == majorminor(os.makedev(259, 1))
    assert "unknown:136:16" == majorminor(0x8810)
    assert "unknown:4095:1048575" == majorminor(os.makedev(0xFFF, 0xFFFFF))


def test_no_partitions(monkeypatch, tmp_path):
    """Where there is no such file, devices are numbers."""
    monkeypatch.setattr(devices, "PARTITIONS", tmp_path / "nothing")

    assert {} == devices._partitions()
