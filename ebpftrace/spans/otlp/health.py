# SPDX-License-Identifier: Apache-2.0
"""What the log says about a collector: a line when it stops taking spans, a line when it takes them again."""

from __future__ import annotations

import logging
import time

QUIET_S = 60.0
"""The shortest time between two lines of one kind: a collector that comes and goes must not fill the log."""

_MAX_REMARKS = 50

_log = logging.getLogger("ebpftrace.otlp")


class Health:
    """Turns answers into few lines. For the sending thread only.

    Args:
        endpoint: as the lines shall call it.

    Attributes:
        failing_since: epoch seconds of the first failure after the last success; 0.0 while it is well.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._state = ""  # "" = well; else "down" or "refused"
        self._told: set[str] = set()  # what was logged since it was well
        self.failing_since = 0.0
        self._since = 0.0
        self._attempts = 0
        self._lost_before = 0
        self._logged_at: dict[str, float] = {}
        self._remarks: set[str] = set()

    def down(self, reason: str, lost: int) -> None:
        """Note an attempt that is to be repeated; `lost` = spans failed or dropped so far, of all time."""
        if self._enter("down", lost):
            _log.warning(
                "%s takes no spans: %s; they wait in the queue, and what finds it full is dropped and counted",
                self._endpoint,
                reason,
            )

    def refused(self, reason: str, lost: int) -> None:
        """Note a request that will never be accepted; `lost` as in `down`, without this request's."""
        if self._enter("refused", lost):
            _log.warning("%s refuses spans: %s; they are counted as failed", self._endpoint, reason)

    def well(self, lost: int) -> None:
        """Note an accepted request."""
        if self._told:
            _log.info(
                "%s takes spans again, after %.1f s and %d failed requests; %d spans were lost",
                self._endpoint,
                time.monotonic() - self._since,
                self._attempts,
                lost - self._lost_before,
            )
        self._state = ""
        self.failing_since = 0.0
        self._told.clear()

    def remark(self, text: str, rejected: int) -> None:
        """Pass on what the server said about a request that it accepted, once for each text."""
        if text in self._remarks or len(self._remarks) >= _MAX_REMARKS or not self._quiet_enough("remark"):
            return
        self._remarks.add(text)
        if rejected:
            _log.warning(
                "%s rejected %d spans of a request: %s", self._endpoint, rejected, text or "it gives no reason"
            )
        else:
            _log.warning("%s remarks: %s", self._endpoint, text)

    def _enter(self, state: str, lost: int) -> bool:
        # Tells whether to log. What came too soon after its like is logged later, if it lasts.
        if not self._state:
            self._since, self._attempts, self._lost_before = time.monotonic(), 0, lost
            self.failing_since = time.time()
        self._state = state
        self._attempts += 1
        if state in self._told or not self._quiet_enough(state):
            return False
        self._told.add(state)
        return True

    def _quiet_enough(self, kind: str) -> bool:
        now = time.monotonic()
        before = self._logged_at.get(kind)
        if before is not None and now - before < QUIET_S:
            return False
        self._logged_at[kind] = now
        return True
