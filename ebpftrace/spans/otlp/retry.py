# SPDX-License-Identifier: Apache-2.0
"""When to try again."""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime

MAX_WAIT_S = 300.0
"""The longest that a server can make us wait: one that asks for a day would have everything dropped."""


_dice = random.SystemRandom()  # not the application's, which it may have seeded


class Backoff:
    """Waits that double, each shortened at random by up to a half, so that a thousand agents do not knock as one.

    Args:
        first_s: the first wait, at its longest.
        max_s: the longest wait.
    """

    def __init__(self, first_s: float, max_s: float) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._next_s = first_s

    def next_s(self) -> float:
        """How long to wait now."""
        wait_s = min(self._next_s, self._max_s)
        self._next_s = min(self._next_s * 2, self._max_s)
        return wait_s * _dice.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin with the first wait again."""
        self._next_s = self._first_s


def retry_after_s(text: str | None) -> float | None:
    """Read a Retry-After header, seconds or a date; None when there is none or it says nothing sensible."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_WAIT_S)
    try:
        then = parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(0.0, then - time.time()), MAX_WAIT_S)
