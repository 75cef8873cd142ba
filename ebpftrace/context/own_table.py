# SPDX-License-Identifier: Apache-2.0
"""A context table in ordinary memory of this process, where no BPF program looks but other readers do."""

from __future__ import annotations

import mmap
import os

from ebpftrace.context import _publisher


def arm() -> None:
    """Have threads publish into it, until `_publisher.disarm()`.

    Raises:
        OSError: there is no memory.
    """
    fds: list[int] = []
    try:
        for size in (_publisher.SLOT_BYTES, _publisher.LINE_BYTES):
            fds.append(os.memfd_create("ebpftrace"))
            os.ftruncate(fds[-1], -(-size * _publisher.TABLE_SLOTS // mmap.PAGESIZE) * mmap.PAGESIZE)
        _publisher.arm(*fds)
    finally:
        for fd in fds:
            os.close(fd)
