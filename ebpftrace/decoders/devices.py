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
    """The block device that has the number, as `stat` gives it.

    The kernel's own dev_t (major << 20 | minor) is another one: programs turn it into this by what the kernel calls
    new_encode_dev(), as ebpf_exporter's do.
    """
    major, minor = value >> 8 & 0xFFF, value & 0xFF | value >> 12 & 0xFFF00
    return _devices.get((major, minor)) or f"unknown:{major}:{minor}"
