# SPDX-License-Identifier: Apache-2.0
"""Every error that ebpftrace raises on purpose.

    EbpftraceError
    ├── BpfError            a bpf(2)/libbpf call failed: errno, what was done, the tail of libbpf's log
    │   ├── LoadError       the kernel refused an object (verifier, missing BTF, limits)
    │   └── AttachError     a loaded program could not be attached to its hook
    ├── UnsupportedError    this kernel, machine or set of privileges lacks a feature
    ├── ConfigError         a wrong name, setting or file (also a ValueError)
    └── CommandError        a command cannot go on; carries the exit code

An application that only calls `ebpftrace.start()` sees none of them but `ConfigError`: what the environment lacks is
one log line, not an exception.
"""

from __future__ import annotations

import errno as _errno
import os


class EbpftraceError(Exception):
    """Base of all errors raised by ebpftrace.

    Attributes:
        told: it is in the log already, so the command line need not say it once more.
    """

    told = False


class BpfError(EbpftraceError):
    """A call into the kernel's BPF subsystem failed.

    Args:
        action: what was being done, in words ("load sched-trace.bpf.o").
        errno: positive errno; 4000 and above are libbpf's own and have no `os.strerror`.
        reason: text for an errno that libc does not know.
        log: the last lines libbpf said while it tried; attached as an exception note.
        hint: what to do about it; "" when the reason says enough.
    """

    def __init__(self, action: str, *, errno: int, reason: str | None = None, log: str = "", hint: str = "") -> None:
        self.action = action
        self.errno = errno
        self.log = log
        name = _errno.errorcode.get(errno, str(errno))
        super().__init__(f"cannot {action}: {reason or os.strerror(errno)} [{name}]" + (f"; {hint}" if hint else ""))
        if log:
            self.add_note(f"libbpf said:\n{log}")


class LoadError(BpfError):
    """The kernel, or libbpf before it, refused to load an object."""


class AttachError(BpfError):
    """A loaded program could not be attached to its hook."""


class UnsupportedError(EbpftraceError):
    """Something this needs is not there.

    Args:
        feature: what is missing ("kernel BTF").
        reason: how that was found out.
        hint: what to do about it; empty when nothing can be done.
    """

    def __init__(self, feature: str, reason: str, hint: str = "") -> None:
        self.feature = feature
        self.reason = reason
        self.hint = hint
        super().__init__(f"{feature} is not available: {reason}" + (f"; {hint}" if hint else ""))


class ConfigError(EbpftraceError, ValueError):
    """A name, setting or file given by the user is wrong."""


class CommandError(EbpftraceError):
    """A command cannot go on; only the CLI turns this into an exit.

    Args:
        message: what, where and how to mend it.
        exit_code: 1 for bad input or a failed run, 2 for wrong usage.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        self.exit_code = exit_code
        super().__init__(message)
