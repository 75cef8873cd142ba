# SPDX-License-Identifier: Apache-2.0
"""Addresses of kernel symbols, for programs that compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KALLSYMS = Path("/proc/kallsyms")


def kernel_addresses(symbols: Sequence[str]) -> Mapping[str, int]:
    """Return the addresses of kernel symbols.

    Raises:
        ConfigError: the kernel has no such symbol.
        UnsupportedError: the kernel hides them from this process.
    """
    wanted, found = set(symbols), {}
    if not wanted:
        return {}
    try:
        with _KALLSYMS.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                address, _, name = line.split()[:3]
                if name in wanted and name not in found:
                    found[name] = int(address, 16)
    except OSError as error:
        raise UnsupportedError("addresses of kernel symbols", f"{_KALLSYMS}: {error.strerror}") from error
    missing = sorted(wanted - found.keys())
    if missing:
        raise ConfigError(f"kaddrs: this kernel has no symbol {', '.join(missing)}: see /proc/kallsyms")
    if not any(found.values()):
        raise UnsupportedError(
            "addresses of kernel symbols", "/proc/kallsyms shows zeros", "the agent needs CAP_SYSLOG to see them"
        )
    return found
