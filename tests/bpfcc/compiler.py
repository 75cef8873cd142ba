# SPDX-License-Identifier: Apache-2.0
"""Whose fault it is when BCC does not compile: an older BCC may not know the headers of a newer kernel."""

from __future__ import annotations

import re
import subprocess

COMPILING_S = 500  # with net/sock.h, in an emulated machine

_ERROR = re.compile(r"error: .*")
_OURS = "incomplete type 'struct bpf_"  # what ebpftrace.bcc.compat is for


def error_of_bcc(errors, *command):
    """Return the compiler's first error in `errors`, when `command`, which has nothing of ours, has it too; else ""."""
    found = _ERROR.search(errors)
    if found is None or _OURS in found[0]:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILING_S)
    except subprocess.TimeoutExpired:  # it runs
        return ""
    return found[0] if found[0] in done.stderr else ""
