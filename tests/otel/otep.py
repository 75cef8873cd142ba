# SPDX-License-Identifier: Apache-2.0
"""A reader of another process's contexts, written from OTEP 4719 and OTEP 4947 and from nothing of ours.

From the process's mappings to its process context; if that speaks of threads, to the ELF file whose dynamic symbols
have `otel_thread_ctx_v1`; by that symbol's relocation to the variable's place in a thread; by the thread's own thread
pointer to the record. Threads are stopped while they are read, as the OTEP demands. x86-64 only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from pathlib import Path
from types import SimpleNamespace

from elftools.elf.elffile import ELFFile
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

SYMBOL = "otel_thread_ctx_v1"
NAMES = ("[anon_shmem:OTEL_CTX]", "[anon:OTEL_CTX]", "/memfd:OTEL_CTX")
HEADER = struct.Struct("=8sIIQQ")
RECORD = struct.Struct("=16s8sBBH")

# psABI of x86-64
R_DTPMOD64, R_DTPOFF64, R_TPOFF64, R_TLSDESC = 16, 17, 18, 36

# ptrace(2)
_GETREGS, _DETACH, _SEIZE, _INTERRUPT = 12, 17, 0x4206, 0x4207
_FS_BASE_WORD, _REGS_WORDS = 21, 27  # struct user_regs_struct
_WALL = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class Process:
    """Another process, as the operating system shows it."""

    def __init__(self, pid):
        self.pid = pid

    def read(self, address, size):
        """Bytes of its memory; that of the program that it runs now."""
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            return os.pread(memory.fileno(), size, address)

    def word(self, address):
        """One 64-bit word of its memory."""
        return int.from_bytes(self.read(address, 8), "little")

    def mappings(self):
        """(start address, offset in the file, name) of every mapping that has a name."""
        for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines():
            words = line.split(maxsplit=5)
            if len(words) == 6:
                yield int(words[0].partition("-")[0], 16), int(words[2], 16), words[5]

    def process_context(self):
        """The process context, or None without one (OTEP 4719, reading protocol)."""
        for start, _, name in self.mappings():
            if name.startswith(NAMES):
                found = self._process_context(start)
                if found is not None:
                    return found
        return None

    def _process_context(self, address):
        while True:
            signature, version, size, published, payload = HEADER.unpack(self.read(address, HEADER.size))
            if (signature, version) != (b"OTEL_CTX", 2):
                return None
            if published == 0:
                continue  # it is being written
            data = self.read(payload, size)
            if HEADER.unpack(self.read(address, HEADER.size))[3] == published:
                return parse_context(data) | {"published": published}

    def symbol(self):
        """How to find the symbol's variable in a thread: a function of the thread pointer; None without the symbol."""
        bases = {name: start for start, offset, name in reversed(list(self.mappings())) if offset == 0}
        for name, base in bases.items():
            path = Path(f"/proc/{self.pid}/root{name}")
            if name.startswith("/") and path.is_file():
                with path.open("rb") as file:
                    if file.read(4) == b"\x7fELF":
                        found = self._symbol_in(ELFFile(file), base)
                        if found is not None:
                            return found
        return None

    def _symbol_in(self, elf, base):
        dynsym = elf.get_section_by_name(".dynsym")
        symbols = dynsym.get_symbol_by_name(SYMBOL) if dynsym else None
        if not symbols or symbols[0]["st_shndx"] == "SHN_UNDEF":
            return None
        assert ("STT_TLS", 8) == (symbols[0]["st_info"]["type"], symbols[0]["st_size"])
        first = min(s["p_vaddr"] - s["p_offset"] for s in elf.iter_segments("PT_LOAD"))
        for section in elf.iter_sections("SHT_RELA"):
            for relocation in section.iter_relocations():
                number = relocation["r_info_sym"]
                if number and dynsym.get_symbol(number).name == SYMBOL:
                    place = base - first + relocation["r_offset"]
                    return self._access(relocation["r_info_type"], place)
        raise AssertionError(f"{SYMBOL} has no relocation")

    def _access(self, kind, place):
        """From the relocated words at `place` (the psABI's TLS models) to the variable of a thread."""
        if kind == R_TPOFF64:
            return lambda thread: (thread + self.word(place)) % (1 << 64)
        if kind == R_DTPMOD64:
            return lambda thread: self._dynamic(thread, self.word(place), self.word(place + 8))
        assert kind == R_TLSDESC
        argument = self.word(place + 8)
        if argument >> 63:  # the offset itself, negative: the variable is in the static block
            return lambda thread: (thread + argument) % (1 << 64)
        return lambda thread: self._dynamic(thread, self.word(argument), self.word(argument + 8))

    def _dynamic(self, thread, module, offset):
        vector = self.word(thread + 8)  # glibc: tcbhead_t.dtv, of 16-byte entries
        return self.word(vector + 16 * module) + offset

    def thread(self, tid, symbol):
        """The context record of a thread, read while it is stopped; None when it has no valid one."""
        with stopped(tid) as fs_base:
            record = self.word(symbol(fs_base))
            if record == 0:
                return None
            trace_id, span_id, valid, flags, size = RECORD.unpack(self.read(record, RECORD.size))
            attributes = self.read(record + RECORD.size, size)
        if valid != 1:
            return None
        return SimpleNamespace(trace_id=trace_id.hex(), span_id=span_id.hex(), flags=flags, attributes=attributes)

    def pointer(self, tid, symbol):
        """What the symbol's variable of a thread says."""
        with stopped(tid) as fs_base:
            return self.word(symbol(fs_base))


def parse_context(data):
    """ProcessContext{Resource resource = 1; repeated KeyValue attributes = 2} as plain values."""
    found = {"resource": {}, "attributes": {}}
    for field, value in _fields(data):
        if field == 1:
            found["resource"] |= dict(map(_plain, Resource.FromString(value).attributes))
        elif field == 2:
            found["attributes"] |= dict([_plain(KeyValue.FromString(value))])
    return found


def _fields(data):
    """(number, bytes) of a message whose fields all have lengths."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        assert 2 == key & 7
        size, at = _varint(data, at)
        yield key >> 3, data[at : at + size]
        at += size
    assert at == len(data)


def _varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at


def _plain(pair):
    return pair.key, _value(pair.value)


def _value(value):
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [_value(item) for item in found.values] if kind == "array_value" else found


@contextlib.contextmanager
def stopped(tid):
    """Stop a thread; gives its thread pointer."""
    _ptrace(_SEIZE, tid)
    try:
        _ptrace(_INTERRUPT, tid)
        os.waitpid(tid, _WALL)
        registers = (ctypes.c_uint64 * _REGS_WORDS)()
        _ptrace(_GETREGS, tid, ctypes.addressof(registers))
        yield registers[_FS_BASE_WORD]
    finally:
        _ptrace(_DETACH, tid)


def _ptrace(request, tid, data=0):
    if _libc.ptrace(request, tid, 0, data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace({request:#x}, {tid}): {os.strerror(code)}")
