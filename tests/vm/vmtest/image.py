# SPDX-License-Identifier: Apache-2.0
"""From a kernel's package to what boots: its uncompressed vmlinux, and an initramfs that finds the host's files.

The vmlinux is booted as it is (PVH), for a guest without hardware virtualisation takes long to decompress it.
"""

from __future__ import annotations

import contextlib
import fcntl
import lzma
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vmtest import apt
from vmtest.errors import VmError

INIT = Path(__file__).with_name("init.sh")
BUSYBOX = Path("/usr/bin/busybox")
MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "virtiofs", "overlay")
_COMPRESSED = {
    b"\x28\xb5\x2f\xfd": ("zstd", "-dcq"),
    b"\x02\x21\x4c\x18": ("lz4", "-dcq"),
    b"\x1f\x8b\x08": ("gzip", "-dcq"),
    b"\xfd7zXZ\x00": ("xz", "-dcq"),
}
_DIRECTORY, _EXECUTABLE, _PLAIN = 0o40755, 0o100755, 0o100644


@dataclass(frozen=True, slots=True)
class Image:
    """A kernel that boots.

    Args:
        series, release: of the kernel.
        directory: its package, unpacked, with `vmlinux` in it.
        initramfs: what it starts with.
    """

    series: str
    release: str
    directory: Path
    initramfs: Path

    @property
    def vmlinux(self):
        """The kernel."""
        return self.directory / "vmlinux"

    @property
    def headers(self):
        """The packages with its headers, unpacked."""
        return self.directory.with_name(f"{self.release}.headers")


def prepare(kernel, cache):
    """Have a kernel ready in `cache`; what is there already is taken as it is.

    Raises:
        VmError: it cannot be fetched or is not what we know how to boot.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        directory = _unpacked(cache, kernel.release, lambda scratch, place: _unpack(kernel, scratch, place))
        _unpacked(
            cache,
            f"{kernel.release}.headers",
            lambda scratch, place: _extract_packages(apt.download_headers(kernel, scratch), place),
        )
        initramfs = cache / f"{kernel.release}.initramfs"
        initramfs.write_bytes(make_initramfs(kernel.release, directory))
    return Image(kernel.series, kernel.release, directory, initramfs)


def _unpacked(cache, name, unpack):
    """A directory of the cache, which `unpack(scratch, directory)` fills when it is not there: as a whole or not."""
    directory = (cache / name).resolve()
    if not directory.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            place = Path(scratch) / "unpacked"
            unpack(scratch, place)
            place.rename(directory)
    return directory


@contextlib.contextmanager
def _locked(path):
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _extract_packages(packages, directory):
    for package in packages:
        run(["dpkg-deb", "--extract", package, directory])


def _unpack(kernel, scratch, directory):
    packages = apt.download(kernel, scratch)
    _extract_packages(packages, directory)
    if not (directory / "lib/modules").is_dir() and (directory / "usr/lib/modules").is_dir():
        (directory / "lib").symlink_to("usr/lib")  # newer packages
    places = (directory / f"boot/vmlinuz-{kernel.release}", directory / f"lib/modules/{kernel.release}/vmlinuz")
    compressed = next((place for place in places if place.exists()), None)
    if compressed is None:
        raise VmError(f"kernel {kernel.series}: no vmlinuz in {', '.join(each.name for each in packages)}")
    run(["depmod", "--basedir", directory, kernel.release])
    (directory / "vmlinux").write_bytes(extract(compressed.read_bytes(), compressed.name))


def extract(data, name):
    """The ELF image in a bzImage.

    Raises:
        VmError: there is none, or its compression is unknown.
    """
    if data[0x202:0x206] != b"HdrS" or len(data) < 0x250:
        raise VmError(f"{name} is no x86 boot image")
    sectors = data[0x1F1] or 4  # Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length
    offset, size = struct.unpack_from("<II", data, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = data[start : start + size]
    for magic, command in _COMPRESSED.items():
        if payload.startswith(magic):
            # the last four bytes are the size of what is in it; some of the tools complain, with or without them
            done = subprocess.run(command, input=payload[:-4], capture_output=True, check=False)
            if done.stdout.startswith(b"\x7fELF") and len(done.stdout) == struct.unpack("<I", payload[-4:])[0]:
                return done.stdout
            raise VmError(f"{name}: {command[0]} cannot unpack it", tail=done.stderr.decode(errors="replace"))
    raise VmError(f"{name} is compressed in a way that is not known here (it begins with {payload[:6].hex()})")


def make_initramfs(release, directory):
    """The archive: busybox, our init, and the modules that it needs, in the order to load them.

    Raises:
        VmError: busybox is not the one that needs no libraries.
    """
    busybox = BUSYBOX.read_bytes()
    if b"/ld-linux" in busybox:
        raise VmError(f"{BUSYBOX} needs libraries", hint="install busybox-static in its place: scripts/vm.sh")
    entries = [(name, _DIRECTORY, b"") for name in ("bin", "dev", "modules")]
    entries += [("bin/busybox", _EXECUTABLE, busybox), ("init", _EXECUTABLE, INIT.read_bytes())]
    names = []
    for path in _module_files(release, directory):
        name, data = _plain_module(path)
        names.append(name)
        entries.append((f"modules/{name}", _PLAIN, data))
    entries.append(("modules.list", _PLAIN, "".join(f"{name}\n" for name in names).encode()))
    return cpio(entries)


def _module_files(release, directory):
    """Files of `MODULES` and of what they depend on; what is built in is not among them."""
    found = {}
    for module in MODULES:
        text = run(["modprobe", "--dirname", directory, "--set-version", release, "--show-depends", module])
        for line in text.splitlines():
            kind, path, *_ = line.split()
            if kind == "insmod":
                found[Path(path)] = True
    return list(found)


def _plain_module(path):
    data = path.read_bytes()
    if path.suffix == ".xz":
        return path.stem, lzma.decompress(data)
    if path.suffix == ".zst":
        return path.stem, subprocess.run(["zstd", "-dcq"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return path.name, data


def cpio(entries):
    """A "newc" archive of (name, mode, data), as the kernel unpacks it."""
    archive = bytearray()
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        path = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        archive += b"070701" + b"".join(b"%08x" % field for field in fields) + path
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def run(command):
    """Run a tool of the host and return its output.

    Raises:
        VmError: it failed, or is not there.
    """
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise VmError(f"there is no {command[0]}", hint="scripts/vm.sh installs what is missing") from None
    if done.returncode:
        raise VmError(f"{' '.join(map(str, command))} ended with {done.returncode}", tail=done.stderr)
    return done.stdout
