# SPDX-License-Identifier: Apache-2.0
"""Trying the hooks out where the library does not run: for `ebpftrace doctor`."""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import TYPE_CHECKING

from ebpftrace.context import _publisher, hooks, switches

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    with _table():
        hooks.install(lambda: None)
        try:
            return _wanted()
        finally:
            hooks.uninstall()


def _wanted() -> tuple[switches.Hook, ...]:
    return tuple(hook for hook in switches.hooks() if hook.wanted)


@contextlib.contextmanager
def _table() -> Iterator[None]:
    """A context table in ordinary memory."""
    with contextlib.ExitStack() as files:
        fds = []
        for name, size in (("slots", _publisher.SLOT_BYTES), ("lines", _publisher.LINE_BYTES)):
            fds.append(os.memfd_create(name))
            files.callback(os.close, fds[-1])
            os.ftruncate(fds[-1], size * _publisher.TABLE_SLOTS)
        _publisher.arm(*fds)
        try:
            yield
        finally:
            _publisher.disarm()
