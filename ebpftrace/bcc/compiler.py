# SPDX-License-Identifier: Apache-2.0
"""Having BCC compile, load and attach a program, and saying what went wrong."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebpftrace.bcc.find import INSTALL, load_bcc
from ebpftrace.errors import ConfigError, EbpftraceError, LoadError, UnsupportedError
from ebpftrace.kernel.perf import paranoid_hint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_STANDARD_ERROR = 2
_LAST_LINES = 30
_BCC_NAME = "/virtual/main.c"  # what BCC calls a source that it is given as text
_HEADERS = "BCC_KERNEL_SOURCE"  # BCC's own variable
_BUILT_IN_HEADERS = Path("/sys/kernel/kheaders.tar.xz")


class Said:
    """What was written to standard error."""

    text = ""

    def last(self) -> str:
        """Return its last lines."""
        return "\n".join(self.text.splitlines()[-_LAST_LINES:])

    def pass_on(self, *, last: bool) -> None:
        """Write it to where it was meant for; without the `last()` lines when an error has them."""
        lines = self.text.splitlines(keepends=True)
        with contextlib.suppress(OSError):  # nobody reads it there
            os.write(_STANDARD_ERROR, "".join(lines if last else lines[:-_LAST_LINES]).encode())


def compile_and_attach(path: Path, text: str, flags: Sequence[str]) -> Any:
    """Return the `bcc.BPF` of a source, its functions attached to the hooks that their names say.

    Args:
        path: of the source, for messages.
        text: the source.
        flags: for the compiler.

    Raises:
        UnsupportedError: there is no BCC, or there are no headers of this kernel.
        ConfigError: the source does not compile; the compiler's last lines are in the notes.
        LoadError: the kernel refuses a function or its hook; the verifier's last lines are in the notes.
    """
    bcc = load_bcc()
    bpf = bcc.BPF.__new__(bcc.BPF)  # it is needed also when its __init__ fails: some hooks may be attached then
    failure, number = None, 0
    with _standard_error() as said:
        try:
            bpf.__init__(text=text.encode(), cflags=list(flags))
        except Exception as caught:  # noqa: BLE001  (BCC raises nothing more special)
            failure, number = caught, ctypes.get_errno()
    said.text = said.text.replace(_BCC_NAME, str(path))
    said.pass_on(last=failure is None)
    if failure is None:
        return bpf
    compiled = bool(bpf.module)
    bpf.cleanup()
    error = _refused(path, failure, number) if compiled else _not_compiled(path)
    if said.text:
        error.add_note(f"BCC said:\n{said.last()}")
    raise error from failure


def _refused(path: Path, failure: Exception, number: int) -> EbpftraceError:
    number = errno.EPERM if "super-user" in str(failure) else number or errno.EINVAL
    return LoadError(f"load {path.name} by BCC", errno=number, reason=str(failure), hint=paranoid_hint(number))


def _not_compiled(path: Path) -> EbpftraceError:
    if not has_headers():
        return UnsupportedError(
            f"compiling {path.name} by BCC",
            f"there are no headers of this kernel: neither {_headers()} nor {_BUILT_IN_HEADERS} is there",
            INSTALL,
        )
    return ConfigError(f"{path}: does not compile: correct what BCC's compiler says")


def has_headers() -> bool:
    """Are there headers of the running kernel where BCC looks for them?"""
    return _headers().exists() or _BUILT_IN_HEADERS.exists()


def header_folders() -> list[Path]:
    """Return where the headers of the running kernel really are: for who lets itself read certain places only."""
    build = _headers()
    return [each.resolve() for each in (build, build.with_name("source")) if each.is_dir()]


def _headers() -> Path:
    return Path(os.environ.get(_HEADERS) or f"/lib/modules/{os.uname().release}/build")


@contextlib.contextmanager
def _standard_error() -> Iterator[Said]:
    """Keep what is written to standard error meanwhile: BCC's compiler, and libbpf in it, know no other place."""
    said = Said()
    try:
        before = os.dup(_STANDARD_ERROR)
    except OSError:  # closed: there is nothing to keep
        yield said
        return
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, before)
        memory = os.memfd_create("ebpftrace-bcc")
        undo.callback(os.close, memory)
        _flush()
        os.dup2(memory, _STANDARD_ERROR)
        try:
            yield said
        finally:
            _flush()
            os.dup2(before, _STANDARD_ERROR)
            said.text = os.pread(memory, os.fstat(memory).st_size, 0).decode(errors="replace")


def _flush() -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            sys.stderr.flush()
