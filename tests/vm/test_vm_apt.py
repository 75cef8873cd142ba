# SPDX-License-Identifier: Apache-2.0
"""Kernels are chosen by what the archives have: a stand-in for apt says what that is."""

from __future__ import annotations

import pytest
from vmtest import apt
from vmtest.errors import VmError

NAMES = """\
linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-56-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-57-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-57-rt-amd64 - Linux 6.1 for 64-bit PCs, PREEMPT_RT (signed)
linux-image-6.1.0-57-cloud-amd64-dbg - Debug symbols
linux-image-6.1.0-57-cloud-amd64-unsigned - Linux 6.1 for x86-64 cloud
linux-image-6.12-cloud-amd64 - Linux for x86-64 cloud (meta-package)
linux-image-6.12.101+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.99+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-5.4.0-200-generic - Ubuntu's
linux-image-6.9.7-amd64 - Linux 6.9 for 64-bit PCs
"""


ARCHIVES = """\
echo 'Other|Debian|http://other/'
echo 'Debian|Debian|http://mirror/debian/'
echo 'Debian|Debian|http://second/debian/'
echo 'Debian|Debian-Security|http://mirror/security/'"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Put a shell script in the place of a command."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")

    def put(name, script):
        path = directory / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return put


def test_newest_of_each_series():
    """Of each series the newest package is taken, compared by numbers; the cloud flavour where there is one."""
    assert {
        "6.1": "6.1.0-56-cloud-amd64",
        "6.9": "6.9.7-amd64",
        "6.12": "6.12.101+deb12-cloud-amd64",
    } == apt.parse_names(NAMES)


def test_choose_all(command, tmp_path):
    """Nothing asked for is everything that the configured archives offer, the oldest first."""
    command("apt-cache", f"cat <<'END'\n{NAMES}END")

    assert ["6.1", "6.9", "6.12"] == [kernel.series for kernel in apt.choose([], tmp_path)]


def test_choose_some(command, tmp_path):
    """Series come in the order in which they were asked for, each once."""
    command("apt-cache", f"cat <<'END'\n{NAMES}END")
    kernels = apt.choose(["6.12", "6.1", "6.12"], tmp_path)

    assert ["linux-image-6.12.101+deb12-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64"] == [
        kernel.package for kernel in kernels
    ]


def test_other_suites(command, tmp_path, monkeypatch):
    """A series that this machine's archives lack comes from lists of our own; no list of the machine is touched."""
    monkeypatch.setattr(apt, "KEYRING", tmp_path)
    command("apt-cache", 'case "$*" in *sourcelist*) echo "linux-image-5.10.0-46-cloud-amd64 - x";; esac')
    command("apt-get", f'case $1 in indextargets) {ARCHIVES} ;; *) echo "$*" >>{tmp_path}/asked ;; esac')
    [kernel] = apt.choose(["5.10"], tmp_path / "own")

    assert "5.10.0-46-cloud-amd64" == kernel.release
    assert f"Dir::State::lists={tmp_path}/own/lists" in kernel.options
    assert f"Dir::State::lists={tmp_path}/own/lists" in (tmp_path / "asked").read_text()
    assert [
        f"deb [signed-by={tmp_path}] http://mirror/security/ bullseye-security main",
        f"deb [signed-by={tmp_path}] http://mirror/debian/ trixie-backports main",
    ] == (tmp_path / "own/sources.list").read_text().splitlines()


def test_no_mirror(command, tmp_path, monkeypatch):
    """Without a source of one of Debian's archives there is no other suite of it: the error says which to add."""
    monkeypatch.setattr(apt, "KEYRING", tmp_path)
    command("apt-cache", "exit 0")
    command("apt-get", "echo 'Debian|Debian|http://mirror/debian/'; echo 'Other|Debian-Security|http://other/'")
    with pytest.raises(VmError, match="this machine's apt has no source of Debian-Security") as caught:
        apt.choose(["5.10"], tmp_path / "own")

    assert "add it to the sources of apt" in str(caught.value)


@pytest.mark.parametrize("series", ["6", "6.x", "linux-6.1", "6.1.0", ""])
def test_no_series(command, tmp_path, series):
    """What is no series is refused by name, with an example."""
    command("apt-cache", "exit 0")
    with pytest.raises(VmError, match="no kernel series") as caught:
        apt.choose([series], tmp_path)

    assert repr(series) in str(caught.value)
    assert "6.12" in str(caught.value)


def test_not_offered(command, tmp_path, monkeypatch):
    """A series that nobody offers is named, with those that there are."""
    monkeypatch.setattr(apt, "KEYRING", tmp_path / "none")
    command("apt-cache", f"cat <<'END'\n{NAMES}END")
    with pytest.raises(VmError, match=r"a kernel 4\.4") as caught:
        apt.choose(["6.1", "4.4"], tmp_path)

    assert "6.1, 6.9, 6.12" in str(caught.value)


def test_nothing_offered(command, tmp_path):
    """Empty package lists are told as that."""
    command("apt-cache", "exit 0")
    with pytest.raises(VmError, match="no kernel"):
        apt.choose([], tmp_path)


def test_no_apt(tmp_path, monkeypatch):
    """A machine without apt is told what the kernels come from."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmError, match="no apt-cache") as caught:
        apt.choose([], tmp_path)

    assert "Debian" in str(caught.value)


def test_no_network(command, tmp_path):
    """A package that cannot be fetched is told with its kernel, apt's own words and what to look at."""
    command("apt-get", "echo 'E: Failed to fetch http://x Could not resolve' >&2; exit 100")
    with pytest.raises(VmError) as caught:
        apt.download(apt.Kernel("6.1", "6.1.0-56-cloud-amd64"), tmp_path)

    assert "kernel 6.1: the package linux-image-6.1.0-56-cloud-amd64" in str(caught.value)
    assert "Could not resolve" in str(caught.value)
    assert "network" in str(caught.value)


def test_download(command, tmp_path):
    """The one file that apt leaves is the package."""
    command("apt-get", "touch linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb")
    target = tmp_path / "target"
    target.mkdir()

    assert [target / "linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb"] == apt.download(
        apt.Kernel("6.1", "6.1.0-56-cloud-amd64"), target
    )


def test_divided_package(command, tmp_path):
    """Of a kernel that is divided into several packages, all of them are fetched."""
    command("apt-get", 'for name; do :; done; touch "${name}_1_amd64.deb"')
    command("dpkg-deb", "echo 'dracut | initramfs-tools, linux-binary-7.3.4-amd64 (= 7.3), linux-modules-7.3.4-amd64'")
    files = apt.download(apt.Kernel("7.3", "7.3.4-amd64"), tmp_path)

    assert ["linux-image", "linux-binary", "linux-modules"] == [file.name.rpartition("-7.3.4")[0] for file in files]


def test_headers(command, tmp_path):
    """The headers are a package of the kernel's and one that flavours share; what builds modules is left."""
    command("apt-get", 'for name; do :; done; touch "${name}_1_amd64.deb"')
    command("dpkg-deb", "echo 'linux-headers-6.1.0-56-common (= 6.1), linux-kbuild-6.1 (>= 6.1), gcc-12'")
    files = apt.download_headers(apt.Kernel("6.1", "6.1.0-56-cloud-amd64"), tmp_path)

    assert ["linux-headers-6.1.0-56-cloud-amd64", "linux-headers-6.1.0-56-common"] == [
        file.name.partition("_")[0] for file in files
    ]
