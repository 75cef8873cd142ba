# SPDX-License-Identifier: Apache-2.0
"""The causes a breakdown names: how each is called, drawn and explained.

One table, so that the waterfall, its legend and the verdict cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """One place where wall time goes.

    Attributes:
        label: the word in the waterfall.
        letter: what stands for it in a stacked bar without colours.
        colour: index in the 256-colour palette; chosen to differ in lightness as well as in hue.
        basic: the SGR code for terminals with 16 colours.
        clause: how the verdict says it of a request.
        advice: what to do when it is the largest.
    """

    label: str
    letter: str
    colour: int
    basic: int
    clause: str
    advice: str


CAUSES = {
    "on_cpu": Cause(
        "on CPU", "C", 71, 32, "it ran on a CPU", "The CPU time is its own work: profile the code to make it less."
    ),
    "run_queue": Cause(
        "run queue", "q", 228, 33, "it was ready but waited for a free CPU",
        "The CPUs were taken: add CPUs, run fewer threads or workers at once, or move busy neighbours away.",
    ),
    "throttled": Cause(
        "throttled", "t", 208, 91, "it was throttled by its CPU quota",
        "Raise the CPU quota of its cgroup (cpu.max; the CPU limit of its container), or use less CPU per period.",
    ),
    "disk": Cause(
        "disk", "d", 75, 34, "it waited for the disk",
        "Do less I/O in the request: fsync less often, read ahead or cache, or use a faster disk.",
    ),
    "network": Cause(
        "network", "n", 43, 36, "it waited for the network",
        "The answer came late: look at the peer, make fewer round trips, or send requests at the same time.",
    ),
    "lock": Cause(
        "lock", "l", 141, 35, "it waited for a lock",
        "Shorten the critical section of the lock's holder, or share less between threads.",
    ),
    "sleep": Cause(
        "sleep", "s", 247, 37, "it slept",
        "It asked to wait: look for sleeps, polling intervals and timers in the code.",
    ),
    "page_fault": Cause(
        "page fault", "f", 211, 95, "it waited for memory pages to be read in",
        "Memory was short or cold: give it more memory, avoid swap, or touch mapped files before the request.",
    ),
    "other": Cause(
        "other wait", "o", 180, 93, "it waited for something the kernel's records do not tell apart",
        "Look at the system calls of its kernel spans to see what it waited in.",
    ),
    "suspended": Cause(
        "suspended", "z", 242, 90, "its coroutine was suspended while the event loop ran others",
        "The event loop was away: find what it awaited, or what blocked the loop.",
    ),
}  # fmt: skip  # a table is read by rows

UNKNOWN = Cause("unaccounted", "?", 239, 90, "nothing is known about it", "")


def cause_of(name: str) -> Cause:
    """The cause called `name`; one of a newer writer is shown by its own name."""
    known = CAUSES.get(name)
    if known:
        return known
    label = name.replace("_", " ")
    return Cause(label, "?", 239, 90, f"its time went to {label}", "")
