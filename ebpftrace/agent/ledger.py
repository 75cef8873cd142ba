# SPDX-License-Identifier: Apache-2.0
"""What programs have counted: counters that only grow, though a reload takes a program out and puts another in."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from ebpftrace.agent.snapshot import CgroupMapSnapshot, FunctionSnapshot, ProgramSnapshot, RingSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ebpftrace.agent.program import AgentProgram, Hook
    from ebpftrace.errors import EbpftraceError

_CGROUP_COUNTERS = ("added", "removed", "failed", "walks")


class Ledger:
    """Adds the counters of programs that are gone to those of their successors. Not for several threads at once."""

    def __init__(self) -> None:
        self._dropped: dict[str, Counter[str]] = {}
        self._runs: dict[str, Counter[tuple[str, str]]] = {}
        self._run_times: dict[str, Counter[tuple[str, str]]] = {}
        self._cgroups: dict[str, Counter[str]] = {}

    def retire(self, program: AgentProgram) -> None:
        """Keep what a program has counted, which is detached and no longer among those that run."""
        name = program.name
        self._dropped.setdefault(name, Counter()).update(program.drops() or {})
        for hook, count, time_ns in program.runs():
            self._runs.setdefault(name, Counter())[_key(hook)] += count
            self._run_times.setdefault(name, Counter())[_key(hook)] += time_ns
        if program.cgroups is not None:
            self._cgroups.setdefault(name, Counter()).update(_cgroup_counters(program.cgroups.snapshot()))

    def programs(
        self, running: Iterable[AgentProgram], failed: Mapping[str, EbpftraceError]
    ) -> tuple[ProgramSnapshot, ...]:
        """Return what runs and what could not be loaded; a program that is being replaced is there once.

        Args:
            running: a successor behind its predecessor.
            failed: why, by name; a program that runs although its new files are wrong may be in both.
        """
        found = {name: ProgramSnapshot(name=name, state="failed", error=str(error)) for name, error in failed.items()}
        for program in running:
            there = found.get(program.name)
            found[program.name] = self._add(there if there and there.state != "failed" else None, program)
        return tuple(found.values())

    def _add(self, predecessor: ProgramSnapshot | None, program: AgentProgram) -> ProgramSnapshot:
        errors, dropped = program.errors(), program.drops()
        if dropped is not None:
            earlier = predecessor.dropped if predecessor is not None else self._dropped.get(program.name)
            dropped = Counter(dropped) + Counter(earlier or {})
        return ProgramSnapshot(
            name=program.name,
            state="partial" if errors else "running",
            error="; ".join(errors),
            hooks_attached=len(program.hooks) - len(errors),
            hooks_failed=len(errors),
            dropped=dropped,
            rings=tuple(
                RingSnapshot(name=name, size_bytes=size, unread_bytes=unread)
                for name, (size, unread) in program.ring_bytes().items()
            ),
            functions=tuple(self._functions(program, predecessor)),
        )

    def _functions(self, program: AgentProgram, predecessor: ProgramSnapshot | None) -> Iterable[FunctionSnapshot]:
        name = program.name
        runs, times = Counter(self._runs.get(name, {})), Counter(self._run_times.get(name, {}))
        for each in predecessor.functions if predecessor is not None else ():
            runs[each.name, each.hook] = each.run_count or 0
            times[each.name, each.hook] = each.run_time_ns or 0
        for hook, count, time_ns in program.runs():
            total = runs[_key(hook)] + count
            yield FunctionSnapshot(
                name=hook.function,
                hook=hook.section,
                attached=not hook.error,
                run_count=total or None,  # 0: the kernel does not count
                run_time_ns=times[_key(hook)] + time_ns if total else None,
            )

    def cgroup_maps(self, running: Iterable[AgentProgram]) -> tuple[CgroupMapSnapshot, ...]:
        """Return the maps of cgroups that are kept filled, one for each program."""
        found: dict[str, CgroupMapSnapshot] = {}
        for program in running:
            if program.cgroups is None:
                continue
            now = program.cgroups.snapshot()
            there = found.get(program.name)
            earlier = _cgroup_counters(there) if there is not None else self._cgroups.get(program.name, Counter())
            total = earlier + _cgroup_counters(now)
            found[program.name] = replace(
                now, added=total["added"], removed=total["removed"], failed=total["failed"], walks=total["walks"]
            )
        return tuple(found.values())


def _key(hook: Hook) -> tuple[str, str]:
    return hook.function, hook.section


def _cgroup_counters(snapshot: CgroupMapSnapshot) -> Counter[str]:
    return Counter({counter: getattr(snapshot, counter) for counter in _CGROUP_COUNTERS})
