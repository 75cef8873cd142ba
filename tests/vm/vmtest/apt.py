# SPDX-License-Identifier: Apache-2.0
"""Kernels that the archives offer, and fetching their packages. Nothing is installed and no source list is changed.

What this machine is configured for comes first. A series that it does not offer is looked for in Debian's older and
newer suites, on the same mirrors, by package lists of our own in a directory of our own.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vmtest.errors import VmError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES = (("Debian-Security", "bullseye-security"), ("Debian", "trixie-backports"))
"""Of which archive, by the label in its Release file, and which."""
_NAME = re.compile(r"linux-image-(?P<release>(?P<series>\d+\.\d+)\.\d\S*?-(?:(?P<cloud>cloud)-)?amd64)$")
_SERIES = re.compile(r"\d+\.\d+")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A package with a kernel in it.

    Args:
        series: "6.1".
        release: what `uname -r` will say.
        origin: where it comes from, for people.
        options: of apt, that lead there.
    """

    series: str
    release: str
    origin: str = "this machine's archives"
    options: tuple[str, ...] = ()

    @property
    def package(self):
        """Its name."""
        return f"linux-image-{self.release}"


def parse_names(text):
    """The kernels in a list of package names, by series: of each the newest, without extras for real time and such.

    The cloud flavour is a third of the size and has all that the programs can use, so it goes first.
    """
    best = {}
    for line in text.splitlines():
        match = _NAME.fullmatch(line.split(" ", 1)[0])
        if match and "-rt-" not in match["release"]:
            rank = (match["cloud"] is not None, _version(match["release"]))
            best[match["series"]] = max(best.get(match["series"], ((), "")), (rank, match["release"]))
    return {series: release for series, (_, release) in sorted(best.items(), key=lambda item: _version(item[0]))}


def _version(text):
    return tuple(int(number) for number in re.findall(r"\d+", text))


def offered(options=()):
    """What an archive's package lists have: releases by series.

    Raises:
        VmError: there is no apt here.
    """
    done = _run(["apt-cache", *options, "search", "--names-only", "^linux-image-[0-9]"])
    if done.returncode:
        raise VmError("apt-cache cannot search for kernels", tail=done.stderr)
    return parse_names(done.stdout)


def choose(wanted, directory):
    """The newest kernel of each series.

    Args:
        wanted: series such as "6.1"; none: every one that this machine's archives offer.
        directory: for package lists of other suites.

    Raises:
        VmError: a series is not one, or nobody offers it.
    """
    for series in wanted:
        if not _SERIES.fullmatch(series):
            raise VmError(f"{series!r} is no kernel series", hint="give one or several such as KERNELS='6.1 6.12'")
    here = offered()
    found = {series: Kernel(series, release) for series, release in here.items()}
    if set(wanted) - found.keys() and KEYRING.exists():
        options = _own_lists(directory)
        for series, release in offered(options).items():
            found.setdefault(series, Kernel(series, release, "Debian's other suites", options))
    missing = sorted(set(wanted) - found.keys(), key=_version)
    if missing:
        raise VmError(
            f"no archive offers a kernel {', '.join(missing)}",
            hint=f"there are: {', '.join(sorted(found, key=_version)) or 'none'}; "
            "package lists may be old: sudo apt-get update",
        )
    if not (wanted or found):
        raise VmError("the configured archives offer no kernel", hint="package lists may be missing: apt-get update")
    return [found[series] for series in (dict.fromkeys(wanted) or found)]


def mirrors():
    """Where this machine's apt finds Debian's archives: addresses by label; the first of each.

    Raises:
        VmError: there is no apt here.
    """
    words = ["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"]
    done = _run(["apt-get", *words])
    if done.returncode:
        raise VmError("apt-get cannot tell this machine's archives", tail=done.stderr)
    found = {}
    for line in done.stdout.splitlines():
        origin, label, address = line.split("|", 2)
        if origin == "Debian":
            found.setdefault(label, address)
    return found


def _sources():
    """The source list of `SUITES`."""
    known = mirrors()
    missing = sorted({label for label, _ in SUITES} - known.keys())
    if missing:
        raise VmError(
            f"this machine's apt has no source of {' and of '.join(missing)}, where kernels of other suites are",
            hint="add it to the sources of apt, then: sudo apt-get update",
        )
    return "".join(f"deb [signed-by={KEYRING}] {known[label]} {suite} main\n" for label, suite in SUITES)


def _own_lists(directory):
    """Options of apt for lists of `SUITES` in a directory of ours, which are brought up to date."""
    for part in ("lists/partial", "cache/archives/partial"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    sources = directory / "sources.list"
    sources.write_text(_sources())
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": directory / "lists",
        "Dir::Cache": directory / "cache",
        "Dir::State::status": "/dev/null",
        "APT::Sandbox::User": "root",
    }
    options = tuple(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))
    done = _run(["apt-get", *options, "-q", "-o", "Acquire::Retries=2", "update"])
    if done.returncode:
        raise VmError("the package lists of Debian's other suites cannot be had", tail=done.stderr, hint=_NETWORK)
    return options


_NETWORK = "is there a network? To run without it: only kernels that were fetched before"


def download(kernel, directory):
    """Fetch a kernel's package into `directory`, and those that it is divided into; returns the files.

    Raises:
        VmError: it cannot be had.
    """
    # divided in newer releases
    return _download_with(kernel, kernel.package, rf"linux-[a-z-]+-{re.escape(kernel.release)}", directory)


def download_headers(kernel, directory):
    """Fetch the packages with a kernel's headers into `directory`; returns the files.

    Raises:
        VmError: they cannot be had.
    """
    return _download_with(kernel, f"linux-headers-{kernel.release}", r"linux-headers-\S+-common", directory)


def _download_with(kernel, package, others, directory):
    """Fetch a package, and those that it depends on whose names match `others`."""
    first = _download(kernel, package, directory)
    depends = _run(["dpkg-deb", "--field", first, "Depends"]).stdout
    parts = re.findall(rf"\b({others})(?= |,|$)", depends)
    return [first, *(_download(kernel, name, directory) for name in dict.fromkeys(parts))]


def _download(kernel, package, directory):
    options = ("-q", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=60", "-o", "APT::Sandbox::User=root")
    done = _run(["apt-get", *kernel.options, *options, "download", package], cwd=directory)
    files = sorted(Path(directory).glob(f"{package}_*.deb"))
    if done.returncode or len(files) != 1:
        raise VmError(
            f"kernel {kernel.series}: the package {package} cannot be fetched",
            tail=done.stderr,
            hint=f"{_NETWORK}; package lists may be old: sudo apt-get update",
        )
    return files[0]


def _run(command, cwd=None, timeout_s=900):
    try:
        return subprocess.run(
            command, cwd=cwd, env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise VmError(f"there is no {command[0]}", hint="the kernels come from a Debian archive, by apt") from None
    except subprocess.TimeoutExpired:
        raise VmError(f"{command[0]} did not end within {timeout_s} s", hint=_NETWORK) from None
