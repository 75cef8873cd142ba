# SPDX-License-Identifier: Apache-2.0
"""For the tests with BCC itself: it needs its package, root and the headers of the running kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_FORCE = "EBPFTRACE_BCC_TESTS"


def _why_not():
    """Why BCC compiles nothing here; "" when it does."""
    # first, for BCC in this process would get in the way of the unit tests' stand-in for it
    headers = Path("/lib/modules", os.uname().release, "build")
    if not headers.exists() and not Path("/sys/kernel/kheaders.tar.xz").exists():
        return f"{headers}: no headers of this kernel"
    from ebpftrace.bcc import load_bcc
    from ebpftrace.errors import UnsupportedError

    try:
        load_bcc()
    except UnsupportedError as error:
        return str(error)
    return "" if os.geteuid() == 0 else "not root"


@pytest.fixture(autouse=True, scope="session")
def bcc():
    """Skip, with the reason, where BCC does not work; fail instead when it was asked for."""
    reason = _why_not()
    if reason and os.environ.get(_FORCE) == "1":
        pytest.fail(f"{_FORCE}=1, but {reason}", pytrace=False)
    if reason:
        pytest.skip(f"BCC compiles nothing here ({reason}); {_FORCE}=1 makes this a failure")
