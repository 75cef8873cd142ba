# SPDX-License-Identifier: Apache-2.0
"""What a BCC program is compiled with to use our header, `ebpftrace_bcc.h`."""

from __future__ import annotations

from importlib.resources import files

from ebpftrace.bcc import compat
from ebpftrace.errors import UnsupportedError

_MAPS = {"EBT_PROCESSES_FD": "processes"}


def cflags(*, context: bool = True) -> list[str]:
    """Return the `cflags` for `BPF(text=..., cflags=...)`: where our header is, and the running session's maps.

    Also what an older BCC lacks to compile with a newer kernel's headers at all.

    The program refers to the maps themselves from when it is loaded; one that is to see the contexts of a later
    session has to be loaded again.

    Args:
        context: whether the program looks for the span that a thread runs; without, `ebt_span_begin()` finds none.

    Raises:
        UnsupportedError: with `context`, no session runs in this process.
    """
    include = files("ebpftrace.programs").joinpath("include", "ebpftrace_bcc.h")
    flags = [f"-I{str(include).removesuffix('/ebpftrace_bcc.h')}", *compat.flags()]
    return [*flags, *_session_maps()] if context else flags


def has_session() -> bool:
    """Does a session run in this process, whose spans a program can find?"""
    from ebpftrace.runtime.session import latest

    session = latest()
    return session is not None and session._kernel is not None


def _session_maps() -> list[str]:
    from ebpftrace.runtime.session import latest

    session = latest()
    if session is None or session._kernel is None:
        reason = session.reason if session is not None and session.reason else "ebpftrace.start() was not called"
        raise UnsupportedError(
            "the context of this process's threads", reason, "or pass context=False: all spans are roots then"
        )
    return [f"-D{macro}={session._kernel.shared_map(name).fd}" for macro, name in _MAPS.items()]
