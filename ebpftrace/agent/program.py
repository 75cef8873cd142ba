# SPDX-License-Identifier: Apache-2.0
"""One program of the agent: what it was made of, what of it is in the kernel, and what that counts."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ebpftrace import decoders
from ebpftrace.config.files import read_bytes, read_text
from ebpftrace.errors import BpfError
from ebpftrace.kernel.ringbuf import unread_bytes
from ebpftrace.programs import program_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ebpftrace.agent.cgroup_map import CgroupIdMap
    from ebpftrace.config import ProgramConfig
    from ebpftrace.config.files import ProgramFiles
    from ebpftrace.config.layout import RecordLayout
    from ebpftrace.decoders import Chain
    from ebpftrace.kernel.maps import Map

logger = logging.getLogger("ebpftrace.agent")

Description = tuple["ProgramConfig", "list[RecordLayout]"]
"""What a program's file says, and what it comes to with the types of its records."""


class InKernel(Protocol):
    """What the agent needs of a loaded program, whoever loaded it; `BpfObject` is one."""

    def map(self, name: str) -> Map:
        """Return one of its maps; it lives as long as this. KeyError when there is none."""

    def max_entries(self, name: str) -> int:
        """Return a map's number of entries; of a ring buffer, its bytes."""

    def run_stats(self, function: str) -> tuple[int, int]:
        """Return how often a function ran and for how many ns; zeros where the kernel does not say."""

    def detach(self) -> None:
        """Take the functions off their hooks; what they wrote stays readable until close(). Idempotent."""

    def close(self) -> None:
        """Detach and unload; idempotent."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a program's files hold, and what the command line says of it: when all is equal, it is the same program.

    Args:
        stem: of the files.
        yaml: where the description is.
        text: what it says.
        data: the object file's bytes; empty when there is none.
        overrides: of its knobs, by `--set`.
        bcc: the source for BCC; "" when there is none.
    """

    stem: str
    yaml: Path
    text: str
    data: bytes
    overrides: tuple[tuple[str, str], ...] = ()
    bcc: str = ""

    @classmethod
    def read(cls, files: ProgramFiles, overrides: Sequence[tuple[str, str]] = ()) -> Source:
        """Read the files.

        Raises:
            ConfigError: one of them cannot be read.
        """
        data = read_bytes(files.object) if files.object else b""
        bcc = read_text(files.bcc) if files.bcc else ""
        return cls(files.stem, files.yaml, read_text(files.yaml), data, tuple(overrides), bcc)

    @property
    def bcc_path(self) -> Path:
        """Where the source for BCC is, if there is one."""
        return self.yaml.with_name(f"{self.stem}.bcc.c")

    def same_code(self, other: Source) -> bool:
        """Would the other put the same into the kernel, but for what the descriptions say?"""
        return (self.data, self.bcc, self.overrides) == (other.data, other.bcc, other.overrides)

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
        describe: returns what another file says of `obj`.
        drops: returns the records that it could not submit so far, by reason; None = it does not count them.

    Attributes:
        describe: returns what another file says of what is in the kernel; ConfigError when it does not fit.
        cgroups: keeps a map of the object filled with cgroup ids, where the file asks for it.
    """

    def __init__(
        self,
        source: Source,
        config: ProgramConfig,
        layouts: list[RecordLayout],
        obj: InKernel,
        hooks: list[Hook],
        *,
        describe: Callable[[Source], Description],
        drops: Callable[[], dict[str, int]] | None = None,
    ) -> None:
        self.source = source
        self.config = config
        self.layouts = layouts
        self.object = obj
        self.hooks = hooks
        self.describe = describe
        self.cgroups: CgroupIdMap | None = None
        self._rings = {name: (obj.map(name), obj.max_entries(name)) for name in self.rings()}
        self._read_drops = drops
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
        if self._read_drops is None:
            return None
        with self._counting:
            try:
                if not self._closed:
                    self._drops = self._read_drops()
            except (BpfError, KeyError) as error:  # a kernel that wants CAP_BPF for it, or no such map
                logger.debug("the drop counters of %r cannot be read: %s", self.name, error)
            return self._drops

    def errors(self) -> list[str]:
        """Return what could not be attached, in words."""
        return [f"{hook.section}: {hook.error}" for hook in self.hooks if hook.error]


def _unread(ring: Map) -> int | None:
    try:
        return unread_bytes(ring)
    except OSError:  # seen by nobody but a graph
        return None


def _chains(layouts: Sequence[RecordLayout]) -> Iterator[Chain]:
    for layout in layouts:
        for column in layout.columns:
            yield decoders.chain(column.kind, column.size, column.decoders, column.names)
