# SPDX-License-Identifier: Apache-2.0
"""Hooks that are perf events to the kernel: classic tracepoints, kprobes, uprobes."""

from __future__ import annotations

import errno
from pathlib import Path

_PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
_UPSTREAM_MAX = 2


def paranoid_hint(number: int, setting: Path = _PARANOID) -> str:
    """Return what to do about an attach that the kernel refused; "" when this is not why.

    Some distributions' kernels (Debian's, Android's) know a third level of `kernel.perf_event_paranoid`, at which
    opening a perf event takes CAP_SYS_ADMIN: CAP_PERFMON does not suffice. BTF tracepoints are no perf events.

    Args:
        number: the errno.
        setting: of the kernel.
    """
    if number != errno.EACCES:
        return ""
    try:
        level = int(setting.read_text())
    except (OSError, ValueError):
        return ""
    if level <= _UPSTREAM_MAX:
        return ""
    return (
        f"kernel.perf_event_paranoid is {level}, where this takes CAP_SYS_ADMIN: `sysctl kernel.perf_event_paranoid="
        f"{_UPSTREAM_MAX}`, or let the agent keep it: --capabilities-keep bpf,perfmon,syslog,sys_admin"
    )
