# SPDX-License-Identifier: Apache-2.0
"""Error numbers of the kernel."""

from __future__ import annotations

import errno as _errno

from ebpftrace.decoders.values import number

# include/linux/errno.h: what the kernel says to itself only, and libc has no names for
_INTERNAL = {
    512: "ERESTARTSYS",
    513: "ERESTARTNOINTR",
    514: "ERESTARTNOHAND",
    515: "ENOIOCTLCMD",
    516: "ERESTART_RESTARTBLOCK",
    517: "EPROBE_DEFER",
    518: "EOPENSTALE",
    519: "ENOPARAM",
    521: "EBADHANDLE",
    522: "ENOTSYNC",
    523: "EBADCOOKIE",
    524: "ENOTSUPP",
    525: "ETOOSMALL",
    526: "ESERVERFAULT",
    527: "EBADTYPE",
    528: "EJUKEBOX",
    529: "EIOCBQUEUED",
    530: "ERECALLCONFLICT",
    531: "ENOGRACE",
}
_NAMES = {**_errno.errorcode, **_INTERNAL, _errno.EDEADLK: "EDEADLK"}  # Python calls it by its other name
_LARGEST = 4095  # MAX_ERRNO


def errno(value: int | str) -> str | None:
    """The name of an error, negative as the kernel returns it or not; nothing for 0, which is none.

    A negative number that was read as an unsigned one of 4 or 8 bytes is understood as well.
    """
    code = number(value)
    if not code:
        return None if code == 0 else f"unknown:{value}"
    for top in (1 << 32, 1 << 64):
        if top - _LARGEST <= code < top:
            code -= top
    return _NAMES.get(abs(code)) or f"unknown:{value}"
