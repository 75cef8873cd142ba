# SPDX-License-Identifier: Apache-2.0
"""BPF objects: open, set up, load, attach, close.

    with BpfObject("sched", data) as sched:
        sched.set_rodata("min_off_cpu_ns", 50_000)
        sched.load()
        sched.attach()

Everything is held by file descriptors of this process and nothing is pinned, so a process that dies in whatever way
leaves nothing behind in the kernel.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ebpftrace.errors import AttachError, LoadError
from ebpftrace.kernel._native import check, check_pointer, ffi, lib, take_log
from ebpftrace.kernel.btf import Btf
from ebpftrace.kernel.maps import Map
from ebpftrace.kernel.perf import paranoid_hint

if TYPE_CHECKING:
    from collections.abc import Iterator

_SK_STORAGE = 24  # enum bpf_map_type


@dataclass(frozen=True, slots=True)
class Program:
    """One function of an object.

    Args:
        name: of the C function.
        section: the hook it asks for ("tp_btf/sched_switch").
        optional: not loaded unless asked for: the section's name began with "?".
    """

    name: str
    section: str
    optional: bool = False


class BpfObject:
    """A BPF object file in memory, and once loaded, in the kernel.

    Args:
        name: the stem; names the object's data maps in the kernel.
        data: the ELF file's bytes.

    Raises:
        LoadError: not a BPF object that libbpf understands.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self._data = data  # libbpf copies it, but not its strings before it has read them
        self._name = ffi.new("char[]", name.encode())
        options = ffi.new("struct bpf_object_open_opts *")
        options.sz = ffi.sizeof("struct bpf_object_open_opts")
        options.object_name = self._name
        take_log()
        pointer = lib.bpf_object__open_mem(ffi.from_buffer(data), len(data), options)
        self._object: Any = check_pointer(f"open the BPF object {name!r}", pointer, LoadError)
        self._links: list[Any] = []
        self._functions = [
            Program(
                _text(lib.bpf_program__name(each)),
                _text(lib.bpf_program__section_name(each)),
                optional=not lib.bpf_program__autoload(each),
            )
            for each in self._each()
        ]

    # --- before load()

    @property
    def btf(self) -> Btf:
        """The object's own types: records, knobs."""
        return Btf(lib.bpf_object__btf(self._object), owner=self)

    def programs(self) -> list[Program]:
        """Return the object's functions."""
        return list(self._functions)

    def unknown_sections(self) -> list[Program]:
        """Return the functions whose sections libbpf has no program type for: load() refuses them."""
        unspecified = 0  # BPF_PROG_TYPE_UNSPEC
        pairs = zip(self._each(), self._functions, strict=True)
        return [function for program, function in pairs if lib.bpf_program__type(program) == unspecified]

    def _each(self) -> Iterator[Any]:
        program = lib.bpf_object__next_program(self._object, ffi.NULL)
        while program != ffi.NULL:
            yield program
            program = lib.bpf_object__next_program(self._object, program)

    def _program(self, name: str) -> Any:
        for program in self._each():
            if _text(lib.bpf_program__name(program)) == name:
                return program
        raise KeyError(f"the BPF object {self.name!r} has no program {name!r}")

    def _map(self, name: str) -> Any:
        for each in self._each_map():
            found = _text(lib.bpf_map__name(each))
            # libbpf puts the object's name before the names of data sections
            if found == name or (name.startswith(".") and found.endswith(name)):
                return each
        raise KeyError(f"the BPF object {self.name!r} has no map {name!r}")

    def _each_map(self) -> Iterator[Any]:
        each = lib.bpf_object__next_map(self._object, ffi.NULL)
        while each != ffi.NULL:
            yield each
            each = lib.bpf_object__next_map(self._object, each)

    def set_autoload(self, program: str, *, autoload: bool) -> None:
        """Choose whether load() loads a function: how a variant is picked by capability."""
        check(f"choose program {program!r}", lib.bpf_program__set_autoload(self._program(program), autoload))

    def set_rodata(self, variable: str, value: int) -> None:
        """Set a `const volatile` integer knob, before load().

        Raises:
            KeyError: the object has no such knob.
            OverflowError: the value does not fit.
        """
        field = self.btf.variables(".rodata").get(variable)
        if field is None:
            raise KeyError(f"the BPF object {self.name!r} has no knob {variable!r}")
        size = ffi.new("size_t *")
        data = lib.bpf_map__initial_value(self._map(".rodata"), size)
        raw = int(value).to_bytes(field.size, "little", signed=field.kind == "signed")
        ffi.memmove(ffi.cast("char *", data) + field.offset, raw, field.size)

    def rodata(self) -> bytes:
        """Return the read-only data as it would be loaded; empty when the object has none."""
        try:
            section = self._map(".rodata")
        except KeyError:
            return b""
        size = ffi.new("size_t *")
        data = lib.bpf_map__initial_value(section, size)
        return bytes(ffi.buffer(data, size[0]))

    def set_ring_bytes(self, name: str, size: int) -> None:
        """Set a ring buffer's size: a power of two and a multiple of the page size."""
        check(f"size the ring buffer {name!r}", lib.bpf_map__set_max_entries(self._map(name), size))

    def max_entries(self, name: str) -> int:
        """Return a map's number of entries; of a ring buffer, its bytes."""
        return int(lib.bpf_map__max_entries(self._map(name)))

    def skip_map(self, name: str) -> None:
        """Do not create a map that none of this object's functions use."""
        check(f"leave out map {name!r}", lib.bpf_map__set_autocreate(self._map(name), False))

    def share_map(self, name: str, other: Map) -> None:
        """Use another object's map in place of this object's own.

        Raises:
            LoadError: the two maps do not have the same shape.
        """
        code = lib.bpf_map__reuse_fd(self._map(name), other.fd)
        check(f"share map {name!r} with the BPF object {self.name!r}", code, LoadError)

    def load(self) -> None:
        """Load all chosen functions and create the maps.

        Raises:
            LoadError: the kernel refused; the verifier's last words are in its notes.
        """
        take_log()
        check(f"load the BPF object {self.name!r}", lib.bpf_object__load(self._object), LoadError)

    # --- after load()

    def map(self, name: str) -> Map:
        """Return a map of the object; it lives as long as the object.

        Raises:
            KeyError: there is none of that name.
        """
        pointer = self._map(name)
        return Map(
            lib.bpf_map__fd(pointer),
            name=name,
            key_size=lib.bpf_map__key_size(pointer),
            value_size=lib.bpf_map__value_size(pointer),
        )

    def map_names(self) -> list[str]:
        """Return the names of all maps, libbpf's own data maps included."""
        return [_text(lib.bpf_map__name(each)) for each in self._each_map()]

    def ring_names(self) -> list[str]:
        """Return the names of the ring buffers."""
        ring = int(lib.BPF_MAP_TYPE_RINGBUF)
        return [_text(lib.bpf_map__name(each)) for each in self._each_map() if lib.bpf_map__type(each) == ring]

    def keeps_in_sockets(self) -> bool:
        """Has it a map whose values belong to sockets?"""
        return any(lib.bpf_map__type(each) == _SK_STORAGE for each in self._each_map())

    def attachable(self) -> list[Program]:
        """Return the functions that are loaded and name their own hooks."""
        return [
            function
            for program, function in zip(self._each(), self._functions, strict=True)
            if lib.bpf_program__autoload(program) and "/" in function.section
        ]

    def attach_iterator(self, name: str) -> int:
        """Attach a loaded iterator; return the descriptor of which `iterate()` makes readings.

        Raises:
            AttachError: libbpf or the kernel refused.
        """
        take_log()
        link = lib.bpf_program__attach(self._program(name))
        self._links.append(check_pointer(f"attach the iterator {name!r} of {self.name!r}", link, AttachError))
        return int(lib.bpf_link__fd(link))

    def attach_one(self, function: Program) -> None:
        """Attach a loaded function to the hook that it names.

        Raises:
            AttachError: libbpf or the kernel refused.
        """
        take_log()
        link = lib.bpf_program__attach(self._program(function.name))
        try:
            self._links.append(check_pointer(f"attach {self.name!r} to {function.section}", link, AttachError))
        except AttachError as error:
            hint = paranoid_hint(error.errno)
            if hint:
                raise AttachError(error.action, errno=error.errno, log=error.log, hint=hint) from None
            raise

    def attach(self) -> None:
        """Attach every loaded function that names its own hook.

        Raises:
            AttachError: one of them could not be; what was attached before it stays until close().
        """
        for function in self.attachable():
            self.attach_one(function)

    def run_once(self, program: str, argument: int = 0) -> int:
        """Run a raw tracepoint function once, in this thread's context; return its result.

        Args:
            program: name of the function.
            argument: what it finds as the tracepoint's first.

        Raises:
            BpfError: the kernel cannot (before 5.10), or a negative result.
        """
        return check(f"run {program!r}", lib.ebt_run_once(lib.bpf_program__fd(self._program(program)), argument))

    def run_stats(self, function: str) -> tuple[int, int]:
        """Return how often a loaded function ran and for how many ns, while kernel.bpf_stats_enabled was 1.

        Zeros where the kernel does not say.
        """
        return run_stats_of(lib.bpf_program__fd(self._program(function)))

    # --- the end

    def detach(self) -> None:
        """Take the functions off their hooks; what they wrote stays readable until close(). Idempotent."""
        for link in self._links:
            lib.bpf_link__destroy(link)
        self._links.clear()

    def close(self) -> None:
        """Detach and unload; idempotent. Links first, so that nothing runs while its maps go."""
        self.detach()
        if self._object is not None:
            lib.bpf_object__close(self._object)
            self._object = None

    def forget(self) -> None:
        """In the child of a fork: close the file descriptors and leave the parent's programs attached."""
        for link in self._links:
            lib.ebt_link_forget(link)
        self._links.clear()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def run_stats_of(fd: int) -> tuple[int, int]:
    """Return how often a function ran and for how many ns, by its descriptor; zeros where the kernel does not say."""
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
    except OSError:
        return 0, 0
    said = dict(line.split(":", 1) for line in text.splitlines())
    return int(said.get("run_cnt", 0)), int(said.get("run_time_ns", 0))


def _text(pointer: Any) -> str:
    text: str = ffi.string(pointer).decode()
    return text


def iterate(link: int) -> bytes:
    """Run an iterator over all that it iterates; return what it wrote.

    Args:
        link: of `BpfObject.attach_iterator()`.

    Raises:
        BpfError: the kernel refused.
    """
    fd = check("run an iterator", lib.bpf_iter_create(link))
    with os.fdopen(fd, "rb", buffering=0) as reading:
        return reading.read()
