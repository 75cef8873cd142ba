# SPDX-License-Identifier: Apache-2.0
"""gevent and eventlet by one face, for the tests of programs that run on greenlets."""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)


def patch(library):
    """Replace threads by greenlets."""
    if library == "gevent":
        from gevent import monkey

        monkey.patch_all()
    else:
        import eventlet

        eventlet.monkey_patch()


def together(library, calls):
    """Run calls in greenlets of their own until all have returned."""
    if library == "gevent":
        import gevent

        gevent.joinall([gevent.spawn(call) for call in calls], raise_error=True)
    else:
        import eventlet

        for each in [eventlet.spawn(call) for call in calls]:
            each.wait()


def block(milliseconds):
    """Keep the whole thread asleep, other greenlets too."""
    _libc.usleep(milliseconds * 1000)
