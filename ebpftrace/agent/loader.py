# SPDX-License-Identifier: Apache-2.0
"""From a program's files to functions attached in the kernel: by libbpf, or where that cannot be, by BCC."""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import TYPE_CHECKING

from ebpftrace.agent.by_bcc import load_by_bcc
from ebpftrace.agent.cgroup_map import cgroup_map_of
from ebpftrace.agent.program import AgentProgram, Hook
from ebpftrace.config.load import load_document
from ebpftrace.config.resolve import resolve
from ebpftrace.errors import EbpftraceError, LoadError, UnsupportedError
from ebpftrace.kernel.btf import Btf
from ebpftrace.kernel.object import BpfObject
from ebpftrace.programs.addresses import kernel_addresses
from ebpftrace.programs.choose import choose_functions, kernel_knobs
from ebpftrace.programs.core import read_drops, size_rings, uses_core
from ebpftrace.programs.knobs import effective_knobs, fill_lists, set_numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ebpftrace.agent.program import Description, Source
    from ebpftrace.agent.startup import SelfTrace
    from ebpftrace.config import ProgramConfig
    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.programs.core import Core
    from ebpftrace.programs.knobs import Knobs

logger = logging.getLogger("ebpftrace.agent")

_INSTEAD = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, or put a source for BCC beside it, {}.bcc.c"
_OWN_RING = "events"  # of our header, there whether it is used or not


class Loader:
    """Loads programs for one agent.

    Args:
        core: owner of the shared maps; loaded when the first program with our header needs it.
        ring_bytes: size of the ring buffers of programs with our header; those of others stay as they are.
        strict: a program runs with all of its hooks, or not.
        extras: load functions that only some kernels take, too.
    """

    def __init__(self, core: Callable[[], Core], ring_bytes: int, *, strict: bool = False, extras: bool = True) -> None:
        self._no_btf: UnsupportedError | None = None
        try:
            self._kernel = Btf.kernel()
        except UnsupportedError as error:
            self._no_btf = error
        self._core = core
        self._ring_bytes = ring_bytes
        self._strict = strict
        self._extras = extras
        self._bits = 0

    def load(self, source: Source, trace: SelfTrace) -> AgentProgram:
        """Load and attach a program.

        Raises:
            EbpftraceError: it cannot run here: bad files, refused by the kernel, or none of its hooks.
        """
        with trace.step(
            f"load {source.stem}", **{"ebpftrace.agent.program": source.name, "ebpftrace.agent.file": str(source.yaml)}
        ):
            reason = self._not_by_libbpf(source)
            if reason and source.bcc:
                return load_by_bcc(source, trace, reason)
            if self._no_btf is not None:
                needed = f"kernel BTF, which {source.stem}.bpf.o needs,"
                raise UnsupportedError(needed, self._no_btf.reason, _INSTEAD.format(source.stem))
            with trace.step("open", **{"ebpftrace.agent.object.size": len(source.data)}):
                obj = _open(source)
            try:
                return self._load(source, obj, trace)
            except BaseException:
                obj.close()
                raise

    def _not_by_libbpf(self, source: Source) -> str:
        """Why there is no object that libbpf could load here; "" when there is one."""
        if self._no_btf is not None:
            return f"the kernel has no BTF: {self._no_btf.reason}"
        return "" if source.data else f"there is no {source.stem}.bpf.o"

    def _load(self, source: Source, obj: BpfObject, trace: SelfTrace) -> AgentProgram:
        with trace.step("read config"):
            config, layouts = describe(source, obj)
            knobs = effective_knobs(config, source.overrides, source.stem)
        _tell_unread(source.stem, layouts, obj)
        with trace.step("prepare"):
            refused = choose_functions(obj, self._kernel, extras=self._extras)
            self._prepare(config, knobs, obj)
        hooks = _left_out(refused, trace)
        with trace.step("load"):
            obj.load()
            fill_lists(obj, knobs)
            cgroups = cgroup_map_of(config, obj, source.name)
        try:
            with trace.step("attach"):
                hooks += self._attach(obj, trace)
            self._check(source.stem, hooks)
            drops = functools.partial(read_drops, obj) if uses_core(obj) else None
            program = AgentProgram(
                source, config, layouts, obj, hooks, describe=lambda new: describe(new, obj), drops=drops
            )
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


def describe(source: Source, obj: BpfObject) -> Description:
    """Return what a program's file says, put together with the types of its object.

    Raises:
        ConfigError: all that is wrong with it.
    """
    document = load_document(source.text, source=source.yaml.name)
    for warning in document.warnings:
        logger.warning("%s", warning)
    layouts = resolve(source.name, source.yaml.name, document.config, obj, lines=document.lines)
    return document.config, layouts


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


def _open(source: Source) -> BpfObject:
    try:
        return BpfObject(source.stem, source.data)
    except LoadError as error:
        error.add_note(f"{source.yaml.with_name(source.stem)}.bpf.o: compile it with `ebpftrace build`")
        raise
