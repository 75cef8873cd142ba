# SPDX-License-Identifier: Apache-2.0
"""Block devices by number."""

from __future__ import annotations

from pathlib import Path

from ebpftrace.decoders.lookups import Cache, Snapshot

PARTITIONS = "/proc/partitions"


def parse_partitions(text: str) -> dict[tuple[int, int], str]:
    """Return device names by major and minor number, from the text of /proc/partitions."""
    found = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[0].isdigit() and fields[1].isdigit():
            found[int(fields[0]), int(fields[1])] = fields[3]
    return found


def _partitions() -> dict[tuple[int, int], str]:
    try:
        return parse_partitions(Path(PARTITIONS).read_text(errors="replace"))
    except OSError:
        return {}


_devices: Cache[tuple[int, int], str] = Cache(Snapshot(_partitions).get, found_s=10)


def majorminor(value: int) -> str:
    """The block device that has the number, as the kernel keeps it (dev_t: 12 bits of major, 20 of minor)."""
    major, minor = value >> 20, value & 0xFFFFF
    return _devices.get((major, minor)) or f"unknown:{major}:{minor}"
