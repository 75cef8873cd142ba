# SPDX-License-Identifier: Apache-2.0
"""A program that BCC loads for us: a YAML file, and beside it the source in BCC's dialect of C, `NAME.bcc.c`."""

from __future__ import annotations

import ctypes
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ebpftrace.bcc.compiler import compile_and_attach
from ebpftrace.bcc.header import cflags
from ebpftrace.bcc.layouts import Description, layouts_of
from ebpftrace.bcc.reader import DROPS
from ebpftrace.bcc.tables import find_buffer, function_names, known_structs
from ebpftrace.config.bcc_source import ADDRESS, KNOB
from ebpftrace.config.files import find, read_text
from ebpftrace.config.load import load_document
from ebpftrace.errors import ConfigError, UnsupportedError
from ebpftrace.kernel.maps import Map
from ebpftrace.kernel.object import run_stats_of
from ebpftrace.programs.addresses import kernel_addresses
from ebpftrace.programs.knobs import fill_lists

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ebpftrace.bcc.tables import Buffer
    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.config.load import Document
    from ebpftrace.config.model import ProgramConfig
    from ebpftrace.programs.knobs import Knobs

logger = logging.getLogger("ebpftrace.bcc")

_KINDS = ("tracepoint", "raw_tracepoint", "kprobe", "kretprobe", "kfunc", "kretfunc", "lsm")


@dataclass(frozen=True, slots=True)
class BccSource:
    """What BCC is to load.

    Args:
        path: of the source; headers beside it are found.
        text: the source.
        config: what the YAML file says.
        knobs: the numbers and lists to set.
    """

    path: Path
    text: str
    config: ProgramConfig
    knobs: Knobs


class BccProgram:
    """A program that BCC has loaded and attached. What is read of it has descriptors of our own, which outlive BCC's.

    Args:
        source: to load.
        context: let its functions find the spans of this process's session.

    Raises:
        UnsupportedError: there is no BCC, no headers of this kernel, or BCC attaches none of its functions.
        ConfigError: the source does not compile, or a knob is not in it.
        LoadError: the kernel refuses it.
    """

    def __init__(self, source: BccSource, *, context: bool = False) -> None:
        flags = [*cflags(context=context), f"-I{source.path.absolute().parent}", *macros(source)]
        self.name = source.path.name.partition(".")[0]
        self.bpf = compile_and_attach(source.path, source.text, flags)
        self._maps: dict[str, Map] = {}
        self._entries: dict[str, int] = {}
        self._functions: dict[str, int] = {}
        try:
            self._functions = {_text(name): os.dup(each.fd) for name, each in self.bpf.funcs.items()}
            self._check(source)
            self._drops = self.map(DROPS) if self.has(DROPS) else None
            fill_lists(self, source.knobs)
        except BaseException:
            self.close()
            raise

    def _check(self, source: BccSource) -> None:
        left = [name for name in function_names(self.bpf) if name not in self._functions]
        if not self._functions:
            what = f"none of {', '.join(left)} has" if left else "there is no function with"
            raise UnsupportedError(
                f"every hook of {source.path.name!r}",
                f"{what} a name by which BCC attaches it",
                "use TRACEPOINT_PROBE(), RAW_TRACEPOINT_PROBE() or kprobe__NAME()",
            )
        if left:
            logger.warning(
                "%s: not attached, for their names do not say where to: %s", source.path.name, ", ".join(left)
            )

    def has(self, name: str) -> bool:
        """Does the program have a table of that name?"""
        try:
            return self.bpf[name] is not None
        except KeyError:
            return False

    def map(self, name: str) -> Map:
        """Return one of its tables; it lives as long as this. KeyError when there is none."""
        if name not in self._maps:
            table = self.bpf[name]
            key_size, value_size = (ctypes.sizeof(getattr(table, part, ctypes.c_int)) for part in ("Key", "Leaf"))
            self._entries[name] = int(table.max_entries)
            self._maps[name] = Map(
                os.dup(table.map_fd), name=name, key_size=key_size, value_size=value_size, owned=True
            )
        return self._maps[name]

    def max_entries(self, name: str) -> int:
        """Return a table's number of entries; of a ring buffer, its bytes."""
        self.map(name)
        return self._entries[name]

    def hooks(self) -> dict[str, str]:
        """Return where its functions are attached, by their names."""
        return {name: hook_of(name) for name in self._functions}

    def run_stats(self, function: str) -> tuple[int, int]:
        """Return how often a function ran and for how many ns, while kernel.bpf_stats_enabled was 1."""
        return run_stats_of(self._functions[function])

    @property
    def counts_drops(self) -> bool:
        """Does it use our header, which has a counter of the records that found no room?"""
        return self._drops is not None

    def drops(self) -> dict[str, int]:
        """Return the records that it could not submit, by reason."""
        if self._drops is None:
            return {}
        return {"ring_full": sum(int.from_bytes(cpu, "little") for cpu in self._drops.lookup_per_cpu(bytes(4)))}

    def detach(self) -> None:
        """Take the functions off their hooks; what they wrote stays readable until close(). Idempotent."""
        if self.bpf.module is None:
            return
        try:
            self.bpf.cleanup()
        except Exception:  # BCC's own, from one of the hooks; the rest is left to close() of the process
            logger.exception("BCC could not detach all of %r", self.name)

    def close(self) -> None:
        """Detach and unload; idempotent."""
        self.detach()
        for each in self._maps.values():
            each.close()
        while self._functions:
            os.close(self._functions.popitem()[1])


def read_source(yaml: Path, knobs: Mapping[str, bool | int | list[str]]) -> tuple[Document, BccSource]:
    """Read the two files of a program.

    Args:
        yaml: where the description is; the source is beside it.
        knobs: over those of the file.

    Raises:
        ConfigError: one of them is missing or wrong.
    """
    [files] = find([], None, [yaml])
    if files.bcc is None:
        raise ConfigError(f"{yaml.with_suffix('.bcc.c')}: is missing: write the program in BCC's dialect of C")
    document = load_document(read_text(yaml), source=yaml.name)
    for warning in document.warnings:
        logger.warning("%s", warning)
    config = document.config
    return document, BccSource(files.bcc, read_text(files.bcc), config, {**config.knobs, **knobs})


def describe_program(program: BccProgram, document: Document, name: str) -> list[RecordLayout]:
    """Return the layouts of a program's records, by its file and the types that BCC knows.

    Raises:
        ConfigError: a buffer is not there or is no ring buffer, or its records do not fit.
    """
    description = description_of(program.bpf, document)
    buffers = [find_buffer(program.bpf, each) for each in description.buffers]
    _refuse_perf(buffers)
    return [layout for each in buffers for layout in layouts_of(description, each, program=name, name="")]


def description_of(bpf: Any, document: Document, structs: Mapping[str, Any] | None = None) -> Description:
    """Return what a file says of a program's records, with the structs that it names taken from the program.

    Args:
        bpf: which has loaded it.
        document: the file.
        structs: that the caller knows better.
    """
    known = known_structs(bpf) | dict(structs or {})
    named = {span.struct for span in document.config.tracing.spans}
    mend = "keep it by EBT_RECORD() of <ebpftrace_bcc.h> in the source"
    return Description(document, {name: known[name] for name in named & known.keys()}, None, mend)


def macros(source: BccSource) -> list[str]:
    """Return the flags by which the compiler gets a file's knobs and addresses.

    Raises:
        ConfigError: the source does not use one of them, or the kernel has no such symbol.
        UnsupportedError: the kernel hides addresses from this process.
    """
    numbers = {KNOB + name: int(value) for name, value in source.knobs.items() if isinstance(value, int)}
    numbers |= {ADDRESS + name: value for name, value in kernel_addresses(source.config.kaddrs).items()}
    for name in numbers:
        if name not in source.text:
            raise ConfigError(f"{source.path}: does not use {name}, which the file sets: use it, or leave it out there")
    return [f"-D{name}={value}{'ULL' if value > 0xFFFF_FFFF else ''}" for name, value in numbers.items()]


def hook_of(function: str) -> str:
    """Return where BCC attaches a function, from its name ("tracepoint/sched/sched_switch")."""
    kind, _, rest = function.partition("__")
    if kind not in _KINDS:
        return function
    return f"{kind}/{rest.replace('__', '/', 1) if kind == 'tracepoint' else rest}"


def _refuse_perf(buffers: Sequence[Buffer]) -> None:
    for each in buffers:
        if each.kind == "perf":
            raise ConfigError(
                f"{each.name!r} is a perf buffer, and the agent reads ring buffers: declare it by "
                "BPF_RINGBUF_OUTPUT, or read it by ebpftrace.bcc.load()"
            )


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
