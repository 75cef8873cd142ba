# SPDX-License-Identifier: Apache-2.0
"""The cffi binding to libbpf, its errors, and its log kept for them."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

from ebpftrace.errors import BpfError, UnsupportedError

try:
    from ebpftrace.kernel import _libbpf  # type: ignore[attr-defined,unused-ignore]  # made by the build
except ImportError as error:
    raise UnsupportedError(
        "libbpf",
        str(error),
        "install libbpf 1.0 or newer (apt-get install libbpf1); in a source tree, build the package (pip install .)",
    ) from error

ffi: Any = _libbpf.ffi
lib: Any = _libbpf.lib

logger = logging.getLogger("ebpftrace.kernel")

_LOG_SIZE = 1 << 16
# libbpf's own errors (libbpf.h: enum libbpf_errno) start here; libc has no text for them
_LIBBPF_ERRNO_START = 4000

lib.ebt_log_install()


def take_log() -> str:
    """Return what libbpf said on this thread since the last call, and forget it."""
    text = ffi.new("char[]", _LOG_SIZE)
    return bytes(ffi.buffer(text, lib.ebt_log_take(text, _LOG_SIZE))).decode("utf-8", "replace").strip()


def fail(action: str, code: int, error: type[BpfError] = BpfError) -> NoReturn:
    """Raise `error` for a negative errno returned by libbpf, with its log.

    Args:
        action: what was being done, in words.
        code: the return value; only its magnitude counts.
        error: `BpfError` or a subclass of it.
    """
    number = abs(code)
    reason = None
    if number >= _LIBBPF_ERRNO_START:
        text = ffi.new("char[]", 256)
        lib.libbpf_strerror(number, text, 256)
        reason = ffi.string(text).decode()
    raise error(action, errno=number, reason=reason, log=take_log())


def check(action: str, code: int, error: type[BpfError] = BpfError) -> int:
    """Return `code`, or raise `error` when it is negative."""
    if code < 0:
        fail(action, code, error)
    return code


def check_pointer(action: str, pointer: Any, error: type[BpfError] = BpfError) -> Any:
    """Return `pointer`, or raise `error` with errno when it is NULL (libbpf 1.0 convention)."""
    if pointer == ffi.NULL:
        fail(action, ffi.errno, error)
    return pointer


def libbpf_version() -> str:
    """Return the version of the libbpf that was found at run time ("v1.1")."""
    version: str = ffi.string(lib.libbpf_version_string()).decode()
    return version
