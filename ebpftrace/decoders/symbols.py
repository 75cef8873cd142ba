# SPDX-License-Identifier: Apache-2.0
"""Kernel addresses as names, by /proc/kallsyms.

The table is read when it is first needed (a tenth of a second, ten megabytes) and again when an address is not in it or
when modules came or went: at most once a second, and rarer while reading it again brings nothing new.
"""

from __future__ import annotations

import bisect
import functools
import logging
import struct
import threading
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.decoders.lookups import after_fork
from ebpftrace.decoders.values import BYTE_ORDER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

KALLSYMS = "/proc/kallsyms"
MODULES = "/proc/modules"

_log = logging.getLogger("ebpftrace.decoders")

_LONGEST = 1 << 20  # bytes; what is farther behind a symbol than this lies in no function
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_U64 = ("<" if BYTE_ORDER == "little" else ">") + "{}Q"


class Table:
    """Symbols in the order of their addresses; of several with one address the first of the file, as the kernel does.

    Args:
        addresses: sorted, each once.
        names: of each; " [module]" behind those of modules.
    """

    def __init__(self, addresses: array[int], names: Sequence[str]) -> None:
        self.addresses, self.names = addresses, names

    def __len__(self) -> int:
        return len(self.addresses)

    def exact(self, address: int) -> str | None:
        """Return the name of the symbol that begins at `address`."""
        index = bisect.bisect_right(self.addresses, address) - 1
        return self.names[index] if index >= 0 and self.addresses[index] == address else None

    def around(self, address: int) -> tuple[str, int, int] | None:
        """Return the symbol that `address` lies in: its name, bytes since its start, its size (0 = unknown)."""
        index = bisect.bisect_right(self.addresses, address) - 1
        if index < 0 or address - self.addresses[index] > _LONGEST:
            return None
        start = self.addresses[index]
        size = self.addresses[index + 1] - start if index + 1 < len(self.addresses) else 0
        return self.names[index], address - start, size


def parse_kallsyms(lines: Iterable[str]) -> Table:
    """Return the symbols in the lines of /proc/kallsyms; those whose address is hidden (0) are left out."""
    found: dict[int, str] = {}
    for line in lines:
        fields = line.split()
        if len(fields) < 3 or fields[1] in "aA" or fields[2].startswith((".L", "$")):
            continue  # absolute values are no addresses; labels within functions are no functions
        try:
            address = int(fields[0], 16)
        except ValueError:
            continue
        if 0 < address < 1 << 64 and address not in found:
            found[address] = f"{fields[2]} {fields[3]}" if len(fields) > 3 else fields[2]
    addresses = sorted(found)
    return Table(array("Q", addresses), [found[address] for address in addresses])


class KernelSymbols:
    """The running kernel's symbols. Safe from any thread.

    Args:
        kallsyms: the file.
        modules: the file that changes when a module comes or goes.
        now: the time in seconds.
    """

    def __init__(
        self, kallsyms: str = KALLSYMS, modules: str = MODULES, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._kallsyms, self._modules, self._now = Path(kallsyms), Path(modules), now
        self._table = Table(array("Q"), [])
        self._loaded_modules = b""
        self._pause_s = _PAUSE_S
        self._next_read = self._next_check = float("-inf")
        self._warned = False
        self.renew_lock()
        after_fork(self)

    def renew_lock(self) -> None:
        """Take a new lock, in the child of a fork."""
        self._lock = threading.Lock()

    def find(self, look: Callable[[Table], str | None]) -> str | None:
        """Return what `look` sees in the table; where it sees nothing, in a newer one, if there may be one."""
        if self._now() >= self._next_check:
            self._check_modules()
        found = look(self._table)
        if found is None and self._now() >= self._next_read:
            self._read()
            found = look(self._table)
        return found

    def prepare(self) -> None:
        """Read the table now, while there is still the capability to see addresses."""
        self._check_modules()
        if not self._table:
            self._read()

    def __bool__(self) -> bool:
        return bool(self._table)

    def _check_modules(self) -> None:
        with self._lock:
            now = self._now()
            if now < self._next_check:
                return
            self._next_check = now + _PAUSE_S
            try:
                modules = self._modules.read_bytes()
            except OSError:  # a kernel without modules
                modules = b""
            changed, self._loaded_modules = modules != self._loaded_modules, modules
            if changed and self._table:
                self._next_read = float("-inf")
        if changed and self._table:
            self._read()

    def _read(self) -> None:
        with self._lock:
            begin = self._now()
            if begin < self._next_read:
                return
            table = self._parse()
            if table:
                news = len(table) != len(self._table) or table.addresses != self._table.addresses
                self._pause_s = _PAUSE_S if news else min(2 * self._pause_s, _LONGEST_PAUSE_S)
                self._table = table
            else:  # hidden; what was read with more privileges stays
                self._pause_s = _LONGEST_PAUSE_S
                self._warn()
            self._next_read = self._now() + self._pause_s

    def _parse(self) -> Table:
        try:
            with self._kallsyms.open(encoding="utf-8", errors="replace") as lines:
                return parse_kallsyms(lines)
        except OSError:
            return Table(array("Q"), [])

    def _warn(self) -> None:
        if not self._table and not self._warned:
            self._warned = True
            _log.warning(
                "kernel addresses stay numbers: %s shows none; run with CAP_SYSLOG and kernel.kptr_restrict below 2",
                self._kallsyms,
            )


KERNEL = KernelSymbols()


def ksym(value: int, symbols: KernelSymbols = KERNEL) -> str:
    """The kernel function or variable that begins at an address."""
    found = symbols.find(lambda table: table.exact(value))
    return found.partition(" ")[0] if found else f"unknown_addr:0x{value & (1 << 64) - 1:x}"


def kstack(value: bytes, symbols: KernelSymbols = KERNEL) -> str | None:
    """A stack of addresses, up to the first 0, as a function's name a line."""
    return "\n".join(_function(address, symbols) for address in _frames(value)) or None


def _function(address: int, symbols: KernelSymbols) -> str:
    found = symbols.find(functools.partial(_name_around, address=address))
    return found or ("??" if symbols else f"unknown_addr:0x{address:x}")


def _name_around(table: Table, address: int) -> str | None:
    found = table.around(address)
    return found[0].partition(" ")[0] if found else None


def kernel_stack(value: bytes, symbols: KernelSymbols = KERNEL) -> str | None:
    """A stack of return addresses, up to the first 0, a line each as the kernel prints it: name+offset/size [mod]."""
    return "\n".join(_line(address, symbols) for address in _frames(value)) or None


def _line(address: int, symbols: KernelSymbols) -> str:
    # a call that never returns is the last of its function, so its return address is the next one's first
    return symbols.find(functools.partial(_frame, address=address - 1)) or f"unknown_addr:0x{address:x}"


def _frame(table: Table, address: int) -> str | None:
    found = table.around(address)
    if found is None:
        return None
    name, _, module = found[0].partition(" ")
    size = f"/0x{found[2]:x}" if found[2] else ""
    return f"{name}+0x{found[1] + 1:x}{size}{' ' + module if module else ''}"


def _frames(value: bytes) -> Sequence[int]:
    frames = struct.unpack_from(_U64.format(len(value) // 8), value)
    return frames[: frames.index(0)] if 0 in frames else frames
