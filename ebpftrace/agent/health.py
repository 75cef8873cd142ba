# SPDX-License-Identifier: Apache-2.0
"""Is the agent well? Judged from a snapshot, for `/healthz`, `/livez` and the service manager's watchdog."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ebpftrace.agent.snapshot import AgentSnapshot

READER_SILENT_S = 15.0
"""The reader looks into the rings at least once a second, an exporter of its thread may hold it a while."""

REGISTRY_SILENT_S = 15.0
"""Its thread waits for no application; a round takes seconds at most, while many register."""

EXPORT_FAILING_S = 60.0
"""Collectors are restarted; the queue bridges that."""


@dataclass(frozen=True, slots=True)
class Health:
    """What is wrong, in words.

    Args:
        dead: what only a restart mends.
        troubled: what keeps spans from arriving, that or another reason.
    """

    dead: tuple[str, ...] = ()
    troubled: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        """A restart would do no good."""
        return not self.dead

    @property
    def healthy(self) -> bool:
        """Kernel spans are made and arrive."""
        return not self.dead and not self.troubled

    @property
    def reasons(self) -> tuple[str, ...]:
        """Everything that is wrong."""
        return self.dead + self.troubled


def judge(snapshot: AgentSnapshot, now: float, *, export_failing_s: float = EXPORT_FAILING_S) -> Health:
    """Return what is wrong with the agent.

    Args:
        snapshot: of it.
        now: epoch seconds.
        export_failing_s: the exporter may fail this long without being called unhealthy.
    """
    dead, troubled = [], []
    reader, export = snapshot.reader, snapshot.export
    silent_s = now - reader.last_round_at
    if not reader.alive:
        dead.append("the reader of the ring buffers has ended")
    elif reader.last_round_at and silent_s > READER_SILENT_S:
        dead.append(f"the reader has not looked into the ring buffers for {silent_s:.0f} s")
    if not any(program.state != "failed" for program in snapshot.programs):
        names = ", ".join(program.name for program in snapshot.programs)
        troubled.append(f"no program runs ({names} failed)" if names else "no program is configured")
    failing_s = now - export.failing_since
    if export.failing_since and failing_s > export_failing_s:
        troubled.append(
            f"the exporter has been failing for {failing_s:.0f} s: {export.last_error or 'no reason given'}"
        )
    registry = snapshot.registry
    # no reason for a restart: what holds it up may be an application, which must not end the tracing of all others
    if registry is not None and registry.last_round_at and now - registry.last_round_at > REGISTRY_SILENT_S:
        troubled.append(f"the registration of applications has been stuck for {now - registry.last_round_at:.0f} s")
    if snapshot.stopping:
        troubled.append("the agent is stopping")
    return Health(tuple(dead), tuple(troubled))
