# SPDX-License-Identifier: Apache-2.0
"""Wrong contexts, published on purpose: what proves that a check can fail."""

from __future__ import annotations

import contextlib
import contextvars
import mmap
import os
import struct
import threading

import oracle
from oracle import check, span

from scenarios import Collector

SCENARIOS = scenario = Collector()

_SIZE = 64
_SPAN_ID, _VALID, _TID, _STAMP_ADDRESS = 16, 24, 32, 40  # struct ebt_slot


@contextlib.contextmanager
def _slot():
    """The calling thread's slot, writable."""
    import ebpftrace.runtime.session as runtime
    from ebpftrace.context import _publisher

    with (
        mmap.mmap(runtime._session._kernel.slots.fd, _publisher.TABLE_SLOTS * _SIZE) as table,
        memoryview(table) as view,
    ):
        for start in range(0, len(view), _SIZE):
            if struct.unpack_from("=I", view, start + _TID)[0] == threading.get_native_id():
                with view[start : start + _SIZE] as found:
                    yield found
                return
        raise LookupError("this thread has no slot")


@scenario("sabotage", "each outcome")
def outcomes():
    """One check of each outcome, in the order of `oracle.OUTCOMES`."""
    with span("published"), _slot() as slot:
        check()
        slot[_VALID] = 0
        check()
        slot[_VALID] = 1
        slot[_SPAN_ID : _SPAN_ID + 8] = os.urandom(8)
        check()
    with _slot() as slot:
        slot[_VALID] = 1
        check()
        slot[_VALID] = 0
    number = len(oracle.oracle()._truths)
    with contextlib.suppress(ProcessLookupError):
        os.getpgid(oracle.MARK + number)
    check()


@scenario("sabotage", "no stamp")
def no_stamp():
    """Without its stamp a slot is believed in whatever context the thread is by then."""
    with span("published"), _slot() as slot:
        contextvars.Context().run(check)
        check()  # a publish without hooks was at the start of the span: two switches ago
    with span("published"), _slot() as slot:
        slot[_STAMP_ADDRESS : _STAMP_ADDRESS + 8] = bytes(8)
        contextvars.Context().run(check)
