# SPDX-License-Identifier: Apache-2.0
"""A function in a fork of this process, for machines on which a fresh interpreter takes seconds to start.

What it would import is imported here, once. Nothing of the library has been started in this process, so for the
library the fork is as good as fresh; only exit handlers do not run in it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback

_IMPORTED = (
    "opentelemetry.sdk.trace.export.in_memory_span_exporter",
    "ebpftrace.breakdown.processor",
    "ebpftrace.config.resolve",
    "ebpftrace.runtime.loader",
    "ebpftrace.runtime.otel",
    "ebpftrace.runtime.session",
)


def run(function, words, timeout_s):
    """Call `function(int(words[0]), *words[1:])` in a child; its end as `subprocess` has it, None when it was too slow.

    The descriptor that the first word is stays open in both.
    """
    for module in _IMPORTED:
        importlib.import_module(module)
    pipes = [os.pipe(), os.pipe()]
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _child(function, words, pipes)
    for _, write in pipes:
        os.close(write)
    output, errors, status = _follow(pid, [read for read, _ in pipes], timeout_s)
    if status is None:
        print(output, errors, sep="\n")
        return None
    return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(status), output, errors)


def _child(function, words, pipes):
    code = 1
    try:
        os.setsid()
        for fd, (read, write) in enumerate(pipes, start=1):
            os.dup2(write, fd)
            os.close(read)
            os.close(write)
        sys.stdout, sys.stderr = (open(fd, "w", buffering=1) for fd in (1, 2))  # noqa: SIM115, PTH123
        function(int(words[0]), *words[1:])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001  (an interpreter of its own would print it, too)
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _follow(pid, pipes, timeout_s):
    """What it wrote, and its wait status; None for one that had to be killed."""
    deadline = time.monotonic() + timeout_s
    texts = {pipe: bytearray() for pipe in pipes}
    ended = os.pidfd_open(pid)
    with selectors.DefaultSelector() as selector:
        for fd in (*pipes, ended):
            selector.register(fd, selectors.EVENT_READ)
        while ended in selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                data = os.read(key.fd, 1 << 16) if key.fd != ended else b""
                if key.fd != ended:
                    texts[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
        late = ended in selector.get_map()
        if late:
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        for pipe in pipes:  # what was still in there; a grandchild may hold the other end, so never to its end
            os.set_blocking(pipe, False)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(pipe, 1 << 16):
                    texts[pipe] += data
    for fd in (*pipes, ended):
        os.close(fd)
    output, errors = (bytes(text).decode(errors="replace") for text in texts.values())
    return output, errors, None if late else status
