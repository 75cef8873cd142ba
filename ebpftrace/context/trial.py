# SPDX-License-Identifier: Apache-2.0
"""Trying the hooks out where the library does not run: for `ebpftrace doctor`."""

from __future__ import annotations

import contextlib
import importlib

from ebpftrace.context import _publisher, hooks, own_table, switches

_TRIED_WITH = ("asyncio", "greenlet", "uvloop")


def hooks_that_work() -> tuple[switches.Hook, ...]:
    """Return how each hook that this Python takes stands in this process, or would with the library running.

    Leaves nothing behind but imports.
    """
    if _publisher.armed():
        return _wanted()
    for module in _TRIED_WITH:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    own_table.arm()
    try:
        hooks.install(lambda: None)
        return _wanted()
    finally:
        _publisher.disarm()
        hooks.uninstall()


def _wanted() -> tuple[switches.Hook, ...]:
    return tuple(hook for hook in switches.hooks() if hook.wanted)
