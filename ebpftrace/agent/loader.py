# SPDX-License-Identifier: Apache-2.0
"""One program of the agent: from its two files to functions attached in the kernel."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace import decoders
from ebpftrace.agent.cgroup_map import CgroupIdMap
from ebpftrace.config.files import read_bytes, read_text
from ebpftrace.config.load import load_document
from ebpftrace.config.resolve import resolve
from ebpftrace.errors import BpfError, ConfigError, EbpftraceError, LoadError, UnsupportedError
from ebpftrace.kernel.object import BpfObject
from ebpftrace.kernel.ringbuf import unread_bytes
from ebpftrace.programs import program_name
from ebpftrace.programs.choose import choose_functions, kernel_knobs
from ebpftrace.programs.core import read_drops, size_rings, uses_core
from ebpftrace.programs.knobs import fill_lists, set_numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ebpftrace.agent.startup import SelfTrace
    from ebpftrace.config import ProgramConfig
    from ebpftrace.config.files import ProgramFiles
    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.decoders import Chain
    from ebpftrace.kernel.btf import Btf
    from ebpftrace.kernel.maps import Map
    from ebpftrace.programs.core import Core

logger = logging.getLogger("ebpftrace.agent")

_OWN_RING = "events"  # of our header, there whether it is used or not
_KALLSYMS = Path("/proc/kallsyms")

Knobs = dict[str, bool | int | list[str]]


@dataclass(frozen=True, slots=True)
class Source:
    """What a program's two files hold, and what the command line says of it: when all is equal, it is the same program.

    Args:
        stem: of the files.
        yaml: where the description is.
        text: what it says.
        data: the object file's bytes.
        overrides: of its knobs, by `--set`.
    """

    stem: str
    yaml: Path
    text: str
    data: bytes
    overrides: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, files: ProgramFiles, overrides: Sequence[tuple[str, str]] = ()) -> Source:
        """Read both files.

        Raises:
            ConfigError: one of them cannot be read.
        """
        text, data = read_text(files.yaml), read_bytes(files.object)
        return cls(files.stem, files.yaml, text, data, tuple(overrides))

    @property
    def name(self) -> str:
        """What spans call the program."""
        return program_name(self.stem)


@dataclass(frozen=True, slots=True)
class Hook:
    """One function and what came of it: `error` is "" when it is attached."""

    function: str
    section: str
    error: str = ""


class AgentProgram:
    """A program that is attached, at least in part.

    Args:
        source: what it was made of.
        config: its file, parsed.
        layouts: of its records.
        obj: in the kernel.
        hooks: its functions, attached or not; extras that this kernel refuses are not among them.

    Attributes:
        cgroups: keeps a map of the object filled with cgroup ids, where the file asks for it.
    """

    def __init__(
        self, source: Source, config: ProgramConfig, layouts: list[RecordLayout], obj: BpfObject, hooks: list[Hook]
    ) -> None:
        self.source = source
        self.config = config
        self.layouts = layouts
        self.object = obj
        self.hooks = hooks
        self.cgroups: CgroupIdMap | None = None
        self._rings = {name: (obj.map(name), obj.max_entries(name)) for name in self.rings()}
        self._counts_drops = uses_core(obj)
        self._drops: dict[str, int] = {}
        self._counting = threading.Lock()  # counters are read by any thread; the object must not go meanwhile
        self._closed = False

    @property
    def name(self) -> str:
        """What spans call it."""
        return self.source.name

    def rings(self) -> dict[str, list[RecordLayout]]:
        """Return the layouts of each of its ring buffers, by the map's name."""
        rings: dict[str, list[RecordLayout]] = {}
        for layout in self.layouts:
            rings.setdefault(layout.ringbuf, []).append(layout)
        return rings

    def adopt(self, source: Source, config: ProgramConfig, layouts: list[RecordLayout]) -> None:
        """Take over another description of the same object; what runs in the kernel stays."""
        self.source, self.config, self.layouts = source, config, layouts

    def begin(self) -> None:
        """Start the threads that it needs; idempotent."""
        if self.cgroups is not None:
            self.cgroups.start()

    def close(self) -> None:
        """Detach and unload; idempotent."""
        if self.cgroups is not None:
            self.cgroups.close()
        with self._counting:
            self._closed = True
            self.object.close()

    def ring_bytes(self) -> dict[str, tuple[int, int | None]]:
        """Return the size of each of its ring buffers, and what of it is unread; None where that cannot be told."""
        with self._counting:
            return {name: (size, None if self._closed else _unread(ring)) for name, (ring, size) in self._rings.items()}

    def runs(self) -> list[tuple[Hook, int, int]]:
        """Return how often each of its functions ran and for how many ns; zeros when the kernel does not count."""
        with self._counting:
            return [
                (hook, *(self.object.run_stats(hook.function) if hook.function and not self._closed else (0, 0)))
                for hook in self.hooks
            ]

    def prepare(self) -> None:
        """Read what its decoders need and only privileges can read; once it is loaded: it is among kernel symbols."""
        for chain in _chains(self.layouts):
            chain.prepare()

    def reads(self) -> set[str]:
        """Return the files and directories that its decoders look things up in."""
        return {path for chain in _chains(self.layouts) for path in chain.reads}

    def drops(self) -> dict[str, int] | None:
        """Return the records lost in the kernel so far, by reason; None when the object does not count them."""
        if not self._counts_drops:
            return None
        with self._counting:
            try:
                if not self._closed:
                    self._drops = read_drops(self.object)
            except (BpfError, KeyError) as error:  # a kernel that wants CAP_BPF for it, or no such map
                logger.debug("the drop counters of %r cannot be read: %s", self.name, error)
            return self._drops

    def errors(self) -> list[str]:
        """Return what could not be attached, in words."""
        return [f"{hook.section}: {hook.error}" for hook in self.hooks if hook.error]


class Loader:
    """Loads programs for one agent.

    Args:
        kernel: the kernel's types.
        core: owner of the shared maps; loaded when the first program with our header needs it.
        ring_bytes: size of the ring buffers of programs with our header; those of others stay as they are.
        strict: a program runs with all of its hooks, or not.
        extras: load functions that only some kernels take, too.
    """

    def __init__(
        self, kernel: Btf, core: Callable[[], Core], ring_bytes: int, *, strict: bool = False, extras: bool = True
    ) -> None:
        self._kernel = kernel
        self._core = core
        self._ring_bytes = ring_bytes
        self._strict = strict
        self._extras = extras
        self._bits = 0

    def describe(self, source: Source, obj: BpfObject) -> tuple[ProgramConfig, list[RecordLayout]]:
        """Return what a program's file says, put together with the types of its object.

        Raises:
            ConfigError: all that is wrong with it.
        """
        document = load_document(source.text, source=source.yaml.name)
        for warning in document.warnings:
            logger.warning("%s", warning)
        layouts = resolve(source.name, source.yaml.name, document.config, obj, lines=document.lines)
        return document.config, layouts

    def load(self, source: Source, trace: SelfTrace) -> AgentProgram:
        """Load and attach a program.

        Raises:
            EbpftraceError: it cannot run here: bad files, refused by the kernel, or none of its hooks.
        """
        with trace.step(
            f"load {source.stem}", **{"ebpftrace.agent.program": source.name, "ebpftrace.agent.file": str(source.yaml)}
        ):
            with trace.step("open", **{"ebpftrace.agent.object.size": len(source.data)}):
                obj = _open(source)
            try:
                return self._load(source, obj, trace)
            except BaseException:
                obj.close()
                raise

    def _load(self, source: Source, obj: BpfObject, trace: SelfTrace) -> AgentProgram:
        with trace.step("read config"):
            config, layouts = self.describe(source, obj)
            knobs = effective_knobs(config, source.overrides, source.stem)
        _tell_unread(source.stem, layouts, obj)
        with trace.step("prepare"):
            refused = choose_functions(obj, self._kernel, extras=self._extras)
            self._prepare(config, knobs, obj)
        hooks = _left_out(refused, trace)
        with trace.step("load"):
            obj.load()
            fill_lists(obj, knobs)
            cgroups = _cgroup_map(config, obj, source.name)
        try:
            with trace.step("attach"):
                hooks += self._attach(obj, trace)
            self._check(source.stem, hooks)
            program = AgentProgram(source, config, layouts, obj, hooks)
        except BaseException:
            if cgroups is not None:
                cgroups.close()
            raise
        program.cgroups = cgroups
        return program

    def _check(self, stem: str, hooks: list[Hook]) -> None:
        """Is what could be attached worth running?"""
        wrong = [f"{hook.section}: {hook.error}" for hook in hooks if hook.error]
        if len(wrong) == len(hooks):
            wanted = f"every hook of {stem!r}"
        elif wrong and self._strict:
            wanted = f"what --strict asks for, all hooks of {stem!r},"
        else:
            return
        reasons = "; ".join(wrong) or "it has no functions"
        raise UnsupportedError(wanted, reasons, "`ebpftrace doctor` shows what is missing")

    def _prepare(self, config: ProgramConfig, knobs: Knobs, obj: BpfObject) -> None:
        if uses_core(obj):
            self._core().lend(obj)
            size_rings(obj, self._ring_bytes)
            obj.set_rodata("ebt_program_bit", 1 << (self._bits % 32))
            self._bits += 1
        set_numbers(obj, kernel_knobs(self._kernel), known_only=True)
        set_numbers(obj, knobs)
        for symbol, address in kernel_addresses(config.kaddrs).items():
            obj.set_rodata(f"kaddr_{symbol}", address)

    def _attach(self, obj: BpfObject, trace: SelfTrace) -> list[Hook]:
        hooks = []
        for function in obj.attachable():
            error = ""
            try:
                with trace.step(f"attach {function.section}", **{"ebpftrace.hook": function.section}):
                    obj.attach_one(function)
            except EbpftraceError as caught:
                error = str(caught)
                logger.warning("%s; the rest of the program goes on", error)
            hooks.append(Hook(function.name, function.section, error))
        return hooks


def _tell_unread(stem: str, layouts: Sequence[RecordLayout], obj: BpfObject) -> None:
    unread = set(obj.ring_names()) - {layout.ringbuf for layout in layouts}
    if uses_core(obj):
        unread -= {_OWN_RING}
    if unread:
        rings = ", ".join(sorted(unread))
        logger.warning("no span of %s.yaml names these ring buffers: %s; what is written there is lost", stem, rings)


def _left_out(refused: Mapping[str, str], trace: SelfTrace) -> list[Hook]:
    """Hooks that this kernel does not have are in the trace like those that could not be attached."""
    sections: dict[str, list[str]] = {}
    for section, reason in refused.items():
        with contextlib.suppress(UnsupportedError), trace.step(f"attach {section}", **{"ebpftrace.hook": section}):
            raise UnsupportedError(section, reason)
        sections.setdefault(reason, []).append(section)
    for reason, them in sections.items():
        logger.warning("cannot attach to %s: %s; the rest of the program goes on", ", ".join(them), reason)
    return [Hook("", section, reason) for section, reason in refused.items()]


def _unread(ring: Map) -> int | None:
    try:
        return unread_bytes(ring)
    except OSError:  # seen by nobody but a graph
        return None


def _open(source: Source) -> BpfObject:
    try:
        return BpfObject(source.stem, source.data)
    except LoadError as error:
        error.add_note(f"{source.yaml.with_name(source.stem)}.bpf.o: compile it with `ebpftrace build`")
        raise


def _chains(layouts: Sequence[RecordLayout]) -> Iterator[Chain]:
    for layout in layouts:
        for column in layout.columns:
            yield decoders.chain(column.kind, column.size, column.decoders, column.names)


def _cgroup_map(config: ProgramConfig, obj: BpfObject, name: str) -> CgroupIdMap | None:
    if config.cgroup_id_map is None:
        return None
    return CgroupIdMap(config.cgroup_id_map, obj.map(config.cgroup_id_map.name), program=name)


def effective_knobs(config: ProgramConfig, overrides: Sequence[tuple[str, str]], stem: str) -> Knobs:
    """Return the knobs of a file, with those of the command line over them.

    Raises:
        ConfigError: a value on the command line is not of the kind that the file has.
    """
    knobs: Knobs = dict(config.knobs)
    for name, text in overrides:
        knobs[name] = _parse_knob(text, f"--set {stem}.{name}={text}", example=knobs.get(name))
    return knobs


def _parse_knob(text: str, where: str, *, example: bool | int | list[str] | None) -> bool | int | list[str]:
    if isinstance(example, list):
        return [word.strip() for word in text.split(",") if word.strip()]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text, 0)
    except ValueError:
        if example is None and re.fullmatch(r"[\w./,+-]+", text):
            return [word for word in text.split(",") if word]
        raise ConfigError(f"{where}: give a whole number, true or false") from None


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
