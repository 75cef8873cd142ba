# SPDX-License-Identifier: Apache-2.0
"""Calls into exporters that take a timeout and do not keep it."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("ebpftrace.spans")


class BoundedCall:
    """Runs one call at a time on a daemon thread and waits for it no longer than told.

    `BatchSpanProcessor.force_flush` ignores its timeout while the exporter retries (tens of seconds with the backend
    down). A call that took too long goes on in the background; the next one first waits for it.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._result = False

    def run(self, call: Callable[[], object], timeout_s: float) -> bool:
        """Run `call`; True when it ended in time and neither returned False nor raised (which is logged)."""
        deadline = time.monotonic() + timeout_s
        earlier = self._thread
        if earlier is not None:
            earlier.join(timeout_s)
            if earlier.is_alive():
                return False
        self._result = False
        thread = threading.Thread(target=self._guarded, args=(call,), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down and starts no more threads: wait as long as it takes
            self._guarded(call)
            return self._result
        self._thread = thread
        thread.join(max(0.0, deadline - time.monotonic()))
        return self._result

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            self._result = call() is not False
        except Exception:  # noqa: BLE001  (an exporter may raise anything; it must not end the process)
            _log.warning("flushing spans failed", exc_info=True)
