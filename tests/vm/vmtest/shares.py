# SPDX-License-Identifier: Apache-2.0
"""Directories of this machine for the guest: one virtiofsd each, which ends with us in whatever way we end."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from pathlib import Path

from vmtest.errors import VmError, tail_of

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
_READY_S = 10

# A process that the kernel kills when its parent, this process, ends
WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


@contextlib.contextmanager
def share(directory, scratch, tag, *, writable=False):
    """Serve a directory on the socket `scratch/tag.socket`, which is yielded, until the block ends.

    It is served from a mount namespace of its own, where it is mounted alone, without what is mounted below it, and
    read-only unless said otherwise. So nothing is mounted here, and nothing in the guest can write to this machine.

    Raises:
        VmError: it cannot be served.
    """
    place, socket, log = scratch / f"{tag}.root", scratch / f"{tag}.socket", scratch / f"{tag}.log"
    place.mkdir()
    words = ["mount", "--bind", str(directory), str(place)]
    script = shlex.join(words)
    if not writable:
        script += " && " + shlex.join(["mount", "-o", "remount,bind,ro", str(place)])
    options = [f"--socket-path={socket}", "--thread-pool-size=0"]
    for option in (f"source={place}", "sandbox=chroot", f"cache={'auto' if writable else 'always'}", "log_level=err"):
        options += ["-o", option]
    script += " && exec " + shlex.join([VIRTIOFSD, *options])
    command = [*WITH_PARENT, "unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _wait_for(process, socket, directory, log)
        yield socket
    finally:
        end(process)
        place.rmdir()  # the mount was in the other namespace and ended with it


def _wait_for(process, socket, directory, log):
    deadline = time.monotonic() + _READY_S
    while not Path(socket).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise VmError(
                f"{directory} cannot be shared with the guest", tail=tail_of(log),
                hint="this needs root, and virtiofsd of Debian 12 (scripts/vm.sh)",
            )  # fmt: skip
        time.sleep(0.01)


def end(process, grace_s=1.0):
    """End a process of ours, and collect it."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
        return
    process.kill()
    process.wait()
