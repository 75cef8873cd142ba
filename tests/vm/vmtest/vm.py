# SPDX-License-Identifier: Apache-2.0
"""One boot of one kernel, one script in it, and its end, in whatever way that comes."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from vmtest.errors import VmError, tail_of
from vmtest.shares import VIRTIOFSD, WITH_PARENT, end, share

QEMU = "qemu-system-x86_64"
TOOLS = {QEMU: "qemu-system-x86", "busybox": "busybox-static", "depmod": "kmod", "setpriv": "util-linux"}
BOOT_S = 300  # it takes 10 where there is nothing else to do
STOP = threading.Event()
"""Set: all guests are to end now."""
MEMORY_MIB = 2048
DISK_MIB = 1024
"""Of /dev/vda, which is empty and takes no more room than what is written to it."""

_LOOK_S = 0.5
_NO_BOOT = "it did not boot"

# One thread and one CPU: with more, the emulator races with a kernel that patches its own code, which is what attaching
# to functions is.  No five-level page tables: they are only slower.
# The guest's clock counts instructions, of 8 ns each: how busy this machine is does not show in there, so what tests
# say of times holds, and their own limits are not reached earlier.  Who sleeps in there sleeps as long out here.
_CLOCK = ("-icount", "shift=3,sleep=on")
_EMULATED = ("-accel", "tcg,thread=single,tb-size=512", "-cpu", "max,la57=off", *_CLOCK)
_NATIVE = ("-accel", "kvm", "-cpu", "host")
_COMMAND_LINE = (
    "console=ttyS0 panic=-1 oops=panic softlockup_panic=1 watchdog_thresh=60 mitigations=off nokaslr "
    "tsc=reliable no_timer_check random.trust_cpu=on quiet"
)

_SCRIPT = """\
# written for one boot; run by the guest's first process
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
for port in /dev/vport*p1; do :; done
exec </dev/null >"$port" 2>&1
echo "vm: $(uname -r) is up"
setsid sh -c {command}
echo $? >{code}
sync
/bin/busybox poweroff -f
"""


def require_tools():
    """Look that all is there that a boot needs.

    Raises:
        VmError: something is missing, or this is no x86-64 machine, or not root.
    """
    if os.uname().machine != "x86_64":
        raise VmError(f"kernels are booted on x86_64 only; this is {os.uname().machine}")
    missing = {
        package for tool, package in {**TOOLS, VIRTIOFSD: "qemu-system-common"}.items() if not shutil.which(tool)
    }
    if missing:
        raise VmError(f"missing (Debian's names): {', '.join(sorted(missing))}", hint="sudo scripts/vm.sh installs it")
    if os.geteuid():
        raise VmError("sharing this machine's files with a guest needs root", hint="sudo make test-vm")


def has_kvm():
    """Is there hardware virtualisation? Other modules called kvm_ emulate, slower than QEMU itself does."""
    hardware = any(Path(f"/sys/module/kvm_{vendor}").exists() for vendor in ("intel", "amd"))
    return hardware and os.access("/dev/kvm", os.R_OK | os.W_OK)


def run(image, command, directory, *, timeout_s, boot_s=BOOT_S, memory_mib=MEMORY_MIB, tell=None):
    """Boot a kernel and run a shell command as root, with this machine's files; returns its exit code.

    Args:
        image: of the kernel.
        command: for a shell; what it writes outside `directory` is gone with the guest.
        directory: of this machine, writable in the guest, at the same path. Gets the guest's `console.log`.
        timeout_s: from the start to the end.
        boot_s: until the command starts.
        memory_mib: of the guest.
        tell: called with each line that the command writes.

    Raises:
        VmError: the guest did not boot, ended by itself (a panic), or was still there when the time was over.
    """
    directory = Path(directory).resolve()
    code = directory / "exit-code"
    code.unlink(missing_ok=True)
    words = {"command": _quoted(command), "code": _quoted(str(code))}
    (directory / "run.sh").write_text(_SCRIPT.format(**words))
    console = directory / "console.log"
    with contextlib.ExitStack() as stack:
        # short, for the path of a socket has 107 bytes at most
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vm.")))
        sockets = {
            "host": stack.enter_context(share("/", scratch, "host")),
            "share": stack.enter_context(share(directory, scratch, "share", writable=True)),
        }
        disk = scratch / "disk"
        with disk.open("wb") as file:
            file.truncate(DISK_MIB << 20)
        arguments = [*_arguments(image, sockets, console, directory, memory_mib), *_disk(disk)]
        errors = stack.enter_context((scratch / "qemu.log").open("wb"))
        process = _start(arguments, errors)
        stack.callback(end, process, 0.0)
        over = _follow(process, time.monotonic(), boot_s, timeout_s, tell or (lambda _: None))
        last = tail_of(console) or tail_of(scratch / "qemu.log")
    name = f"kernel {image.series} ({image.release})"
    if over:
        raise VmError(f"{name}: {over}", tail=last, again=over.startswith(_NO_BOOT))
    try:
        return int(code.read_text())
    except (OSError, ValueError):
        raise VmError(f"{name}: the guest ended before its command did", tail=last, again=True) from None


def _quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


def _arguments(image, sockets, console, directory, memory_mib):
    line = f"{_COMMAND_LINE} vm.share={directory} vm.modules={image.directory} vm.headers={image.headers}"
    arguments = [QEMU, "-M", "pc,memory-backend=memory", *(_NATIVE if has_kvm() else _EMULATED), "-smp", "1"]
    arguments += ["-m", str(memory_mib), "-object", f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on"]
    arguments += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    arguments += ["-kernel", str(image.vmlinux), "-initrd", str(image.initramfs), "-append", line]
    arguments += ["-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"]
    arguments += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
    arguments += ["-chardev", "file,id=output,path=/dev/fd/1,append=on"]
    arguments += ["-device", "virtserialport,nr=1,chardev=output"]
    for tag, socket in sockets.items():
        arguments += ["-chardev", f"socket,id={tag},path={socket}"]
        arguments += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
    return arguments


def _disk(path):
    return ["-drive", f"file={path},format=raw,if=none,id=disk,cache=unsafe", "-device", "virtio-blk-pci,drive=disk"]


def _start(arguments, errors):
    try:
        return subprocess.Popen(
            [*WITH_PARENT, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
    except FileNotFoundError:
        raise VmError(f"there is no {WITH_PARENT[0]}", hint="scripts/vm.sh installs what is missing") from None


def _follow(process, started, boot_s, timeout_s, tell):
    """Pass on what the guest says until it ends; returns what took too long, else ""."""
    lines = _Lines(tell)
    with selectors.DefaultSelector() as selector, process.stdout, contextlib.closing(lines):
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            limit = timeout_s if lines.any else min(boot_s, timeout_s)
            left = started + limit - time.monotonic()
            if left <= 0:
                return f"{'its command did not end' if lines.any else _NO_BOOT} within {limit:.0f} s"
            if STOP.is_set():
                return "it was stopped"
            if not selector.select(min(left, _LOOK_S)):
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return ""
            lines.feed(data)


class _Lines:
    """Bytes in, whole lines out; at the end also one that is not whole: it may name the test that a guest died in."""

    def __init__(self, tell):
        self.any = False
        self._tell, self._rest = tell, b""

    def feed(self, data):
        """Take what came."""
        self.any = True
        *lines, self._rest = (self._rest + data.replace(b"\r", b"")).split(b"\n")
        for line in lines:
            self._tell(line.decode(errors="replace"))

    def close(self):
        """No more will come."""
        if self._rest:
            self._tell(self._rest.decode(errors="replace"))
