# SPDX-License-Identifier: Apache-2.0
"""What can go wrong before a test has run."""

from __future__ import annotations

import re


class VmError(Exception):
    """A kernel could not be had, booted, or kept running.

    Args:
        what: went wrong, and with which kernel.
        tail: last lines of whatever was running.
        hint: how to mend it.
        again: may it go well the next time, because it was the emulation's fault?
    """

    def __init__(self, what, *, tail="", hint="", again=False):
        super().__init__(what)
        self.what, self.tail, self.hint, self.again = what, tail, hint, again

    def __str__(self):
        parts = [self.what]
        if self.tail.strip():
            parts += ["last lines:", *(f"  | {line}" for line in self.tail.strip().splitlines())]
        if self.hint:
            parts.append(self.hint)
        return "\n".join(parts)


_REASON = re.compile(r"Kernel panic|BUG:|Oops|watchdog: |^vm: ")


def tail_of(path, lines=25):
    """The last lines of a file that may not be there; before them what says why, for a panic ends in a trace."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    found = text.replace("\r", "").rstrip().splitlines()
    reasons = [line for line in found[:-lines] if _REASON.search(line)]
    return "\n".join([*reasons[-3:], *found[-lines:]])
