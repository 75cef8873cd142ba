# SPDX-License-Identifier: Apache-2.0
"""What boots is made of a package: here of small stand-ins for one."""

from __future__ import annotations

import gzip
import lzma
import struct
import subprocess
from types import SimpleNamespace

import pytest
from vmtest import apt, image
from vmtest.errors import VmError

ELF = b"\x7fELF" + bytes(range(256)) * 8
PACKERS = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": lambda data: subprocess.run(["zstd", "-q"], input=data, stdout=subprocess.PIPE, check=True).stdout,
    "lz4": lambda data: subprocess.run(["lz4", "-lqz"], input=data, stdout=subprocess.PIPE, check=True).stdout,
}


def boot_image(payload, sectors=3):
    """An x86 boot image around a payload that is compressed, and its size after it."""
    head = bytearray((sectors + 1) * 512)
    head[0x1F1] = sectors
    head[0x202:0x206] = b"HdrS"
    payload += struct.pack("<I", len(ELF))
    struct.pack_into("<II", head, 0x248, 64, len(payload))
    return bytes(head) + bytes(64) + payload + bytes(1000)


@pytest.mark.parametrize("name", PACKERS)
def test_extract(name):
    """The ELF image in a boot image is found, in whatever way it is compressed."""
    assert ELF == image.extract(boot_image(PACKERS[name](ELF)), "vmlinuz")


def test_no_boot_image():
    """What is no boot image is refused by name."""
    with pytest.raises(VmError, match="vmlinuz is no x86 boot image"):
        image.extract(bytes(4096), "vmlinuz")


def test_unknown_compression():
    """A compression that is not known is told by its first bytes."""
    with pytest.raises(VmError, match="begins with 010203"):
        image.extract(boot_image(b"\1\2\3\4\5\6\7\10"), "vmlinuz")


def test_damaged():
    """A payload that does not unpack to an ELF image is an error, with the tool's words."""
    with pytest.raises(VmError, match="gzip cannot unpack it"):
        image.extract(boot_image(gzip.compress(ELF)[:40]), "vmlinuz")


def test_cpio(tmp_path):
    """The archive is one that cpio(1) unpacks, with names, modes and contents as given."""
    data = b"\0\1\2" * 5
    archive = image.cpio([("dir", 0o40755, b""), ("dir/one", 0o100755, data), ("two", 0o100644, b"")])
    subprocess.run(["busybox", "cpio", "-id"], input=archive, cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)

    assert data == (tmp_path / "dir/one").read_bytes()
    assert 0o755 == (tmp_path / "dir/one").stat().st_mode & 0o777
    assert b"" == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("suffix", ["", ".xz", ".zst"])
def test_modules_are_plain(tmp_path, suffix):
    """Modules are put into the archive unpacked, for busybox loads no others."""
    packed = {"": ELF, ".xz": lzma.compress(ELF), ".zst": PACKERS["zstd"](ELF)}[suffix]
    path = tmp_path / f"overlay.ko{suffix}"
    path.write_bytes(packed)

    assert ("overlay.ko", ELF) == image._plain_module(path)


def deb(directory, name):
    """A Debian package of what is in `directory/name`."""
    root = directory / name
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@y>\nDescription: x\n"
    )
    file = directory / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, file], check=True, stdout=subprocess.DEVNULL)
    return file


def kernel_package(directory, release):
    """A package with a kernel in it."""
    root = directory / "kernel"
    (root / "boot").mkdir(parents=True)
    (root / f"boot/vmlinuz-{release}").write_bytes(boot_image(gzip.compress(ELF)))
    modules = root / f"lib/modules/{release}"
    modules.mkdir(parents=True)
    names = [name.replace("_", "-") for name in image.MODULES]
    (modules / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in names))
    (modules / "modules.order").write_text("")
    return deb(directory, "kernel")


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive that has the packages of one kernel; `asked` for each time that they were fetched."""
    release, asked = "9.9.0-1-cloud-amd64", []
    kernel = kernel_package(tmp_path, release)
    headers = tmp_path / f"headers/usr/src/linux-headers-{release}"
    headers.mkdir(parents=True)
    (headers / "Makefile").write_text("include common\n")
    headers = deb(tmp_path, "headers")
    monkeypatch.setattr(apt, "download", lambda *_: asked.append("kernel") or [kernel])
    monkeypatch.setattr(apt, "download_headers", lambda *_: asked.append("headers") or [headers])
    return SimpleNamespace(kernel=apt.Kernel("9.9", release), asked=asked)


def test_prepare(archive, tmp_path):
    """Packages are fetched and unpacked once; the second time nothing is asked for."""
    first = image.prepare(archive.kernel, tmp_path / "cache")
    second = image.prepare(archive.kernel, tmp_path / "cache")

    assert first == second
    assert ["kernel", "headers"] == archive.asked
    assert ELF == first.vmlinux.read_bytes()
    assert b"exec $bb switch_root" in first.initramfs.read_bytes()
    assert (first.headers / f"usr/src/linux-headers-{archive.kernel.release}/Makefile").exists()


def test_prepare_interrupted(archive, tmp_path, monkeypatch):
    """A run that is interrupted while it unpacks leaves nothing that the next one would take for a kernel."""
    extract = image.extract

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(image, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        image.prepare(archive.kernel, tmp_path / "cache")
    left = sorted(path.name for path in (tmp_path / "cache").iterdir())
    monkeypatch.setattr(image, "extract", extract)

    assert ["lock"] == left
    assert ELF == image.prepare(archive.kernel, tmp_path / "cache").vmlinux.read_bytes()


def test_no_tool():
    """A tool that is missing is named, with what installs it."""
    with pytest.raises(VmError, match=r"no no-such-tool.*\n.*scripts/vm\.sh"):
        image.run(["no-such-tool"])


def test_dynamic_busybox(tmp_path, monkeypatch):
    """A busybox that needs libraries is refused: in the archive there are none."""
    monkeypatch.setattr(image, "BUSYBOX", tmp_path / "busybox")
    image.BUSYBOX.write_bytes(ELF + b"/lib64/ld-linux-x86-64.so.2\0")
    with pytest.raises(VmError, match="busybox-static"):
        image.make_initramfs("9.9", tmp_path)
