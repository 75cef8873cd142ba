# SPDX-License-Identifier: Apache-2.0
"""Greenlets in place of threads: what gevent and eventlet make of `threading`.

A background thread is then a greenlet of the thread that started it, and so are those of the application's span
processors. That is where kernel spans must enter them: their locks and events are greenlets' too, and do not carry
over to a real thread. So ours are greenlets as well, which must never block: all the others would stop.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from importlib.machinery import BuiltinImporter, ModuleSpec
from importlib.util import module_from_spec
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

T = TypeVar("T")

_LOOK_S = 0.002  # at whether a call in a real thread is done


def threads_are_greenlets() -> bool:
    """Would a thread that is started now be a greenlet? May become true at any time, never false again."""
    return _gevent() or _eventlet()


def _gevent() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _eventlet() -> bool:
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched("thread"))


def settle(thread: threading.Thread, ident: int) -> None:
    """At the end of a thread: have `threading`, patched meanwhile, find it by the id that it looks for since.

    Args:
        thread: this one.
        ident: `threading.get_ident()` when it began.
    """
    now = threading.get_ident()
    if now != ident:
        known: dict[int, threading.Thread] = threading._active  # type: ignore[attr-defined]
        known.pop(ident, None)
        known[now] = thread


class Nap:
    """A greenlet's sleep that another can cut short."""

    def __init__(self) -> None:
        if _gevent():
            from gevent.event import Event

            self._event: Any = Event()
            self._sleep = self._sleep_unseen
        else:
            self._event = threading.Event()
            self._sleep = self._event.wait

    def _sleep_unseen(self, seconds: float) -> None:
        """As long as gevent has nothing else to wait for, it does not wait for us: `gevent.wait()` must end."""
        from gevent import Timeout

        with Timeout(seconds, False, ref=False):
            self._event.wait()

    def take(self, seconds: float) -> None:
        """Let others run, for `seconds` or until `end()`."""
        self._sleep(seconds)
        self._event.clear()

    def end(self) -> None:
        """Cut it short; the next one, when there is none."""
        self._event.set()


def in_real_thread(function: Callable[..., T], *args: object) -> T:
    """Call a function that blocks, and let other greenlets run meanwhile; what it raises is raised here.

    Only gevent's locks can be used from another thread, which the function may do by logging. Elsewhere it is called
    here.
    """
    if not _gevent():
        return function(*args)
    returned: list[T] = []
    raised: list[BaseException] = []

    def call() -> None:
        try:
            returned.append(function(*args))
        except BaseException as error:  # noqa: BLE001  (raised again where it belongs)
            raised.append(error)

    pid = os.getpid()
    real_thread_module().start_new_thread(call, ())
    while not (returned or raised):
        time.sleep(_LOOK_S)
        if os.getpid() != pid:  # another greenlet forked: this one is in the child too, the thread is not
            from greenlet import GreenletExit

            raise GreenletExit
    if raised:
        raise raised[0]
    return returned[0]


@functools.cache
def real_thread_module() -> ModuleType:
    """`_thread` as nobody has patched it: made anew."""
    spec = ModuleSpec("_thread", BuiltinImporter(), origin="built-in")
    module = module_from_spec(spec)
    BuiltinImporter.exec_module(module)
    return module
