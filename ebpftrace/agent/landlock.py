# SPDX-License-Identifier: Apache-2.0
"""Landlock: what files and TCP ports this process and its later threads can reach, whatever its user id.

    restrict(write=[output_dir], read=[config_dir], connect_ports=[4318])

Everything but reading the places named here is given up: no other file can be read or written, nothing executed, no
TCP connection made to another port, no signal sent to another process. Also out of reach from then on, as a rule of
Landlock's own: what needs tracing rights on another process (`/proc/PID/exe`, `maps`, `environ`, `fd`; not `comm`,
`stat` or `cgroup`). Descriptors that are open stay usable, so open an output file before.

What the kernel can do is asked of it; each right that it does not know is left out and the report says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import ssl
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import ebpftrace
from ebpftrace.agent.linux import checked, libc, other_threads, set_no_new_privileges
from ebpftrace.agent.logs import fields
from ebpftrace.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

logger = logging.getLogger("ebpftrace.agent")

# The same numbers on every machine: they are newer than the common table of system calls
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH, _RULE_NET_PORT = 1, 2

# include/uapi/linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_REMOVE_FILE, _MAKE_REG = 1 << 5, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FIRST_FS = (1 << 13) - 1  # what the first version knew
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2

_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _TRUNCATE | _MAKE_REG | _REMOVE_FILE

SYSTEM = ("/proc", "/sys", "/etc", "/usr", "/lib", "/lib64", "/run/systemd/resolve", "/dev/urandom", "/dev/null")
"""What is readable always: the kernel's files, libraries, names and certificates, ids of devices."""
_WRITABLE = ("/dev/null",)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_DNS_PORT = 53  # of answers too large for a datagram


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _NetPort(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


@dataclass(frozen=True, slots=True)
class Confinement:
    """What is in force.

    Args:
        abi: what the kernel offers; 0 = no Landlock, and nothing is in force.
        reason: why not; "" when it is.
        files: access to files is confined.
        network: TCP is confined to ports.
        signals: other processes cannot be signalled.
    """

    abi: int
    reason: str = ""
    files: bool = False
    network: bool = False
    signals: bool = False


def probe() -> tuple[int, str]:
    """Return the kernel's Landlock interface, and "" or why there is none (0)."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION))
    if version > 0:
        return version, ""
    number = ctypes.get_errno()
    return 0, {
        errno.ENOSYS: "the kernel has no Landlock",
        errno.EOPNOTSUPP: "Landlock is off (kernel option lsm=)",
    }.get(number, os.strerror(number))


def restrict(
    write: Iterable[str | Path] = (),
    *,
    read: Iterable[str | Path] = (),
    connect_ports: Iterable[int] | None = None,
    bind_ports: Iterable[int] = (),
    abstract_sockets: bool = False,
) -> Confinement:
    """Confine this thread and those that it starts, for good, and log what is in force.

    Args:
        write: directories in which files may be made, changed and removed, or files that may be written; of a file
            that does not exist, its directory.
        read: directories and files that may be read beside the system's, Python's and the trusted certificates.
        connect_ports: TCP ports that may be connected to, and that of DNS; None = any.
        bind_ports: TCP ports that may be listened on later; 0 = those the kernel picks (gRPC tries one to see
            whether there is IPv6).
        abstract_sockets: leave sockets of the abstract name space reachable.

    Raises:
        UnsupportedError: there are other threads already, which would stay free; or the kernel refused.
    """
    abi, reason = probe()
    if not abi:
        logger.warning("not confined by Landlock", extra=fields(reason=reason))
        return Confinement(0, reason)
    if others := other_threads():
        raise UnsupportedError(
            "Landlock", f"{others} other threads run already and would stay free", "start no thread before"
        )
    write, bind_ports = tuple(write), tuple(bind_ports)
    ports = None if connect_ports is None else sorted({*connect_ports, _DNS_PORT})
    try:
        _confine(
            abi, _Rules(_readable(read), [_existing(each) for each in write], ports, list(bind_ports), abstract_sockets)
        )
    except OSError as error:
        raise UnsupportedError(
            "Landlock", f"{error.filename or 'restricting'}: {error.strerror}", "--no-landlock does without"
        ) from error
    made = Confinement(abi, files=True, network=abi >= 4, signals=abi >= 6)
    logger.info(
        "confined by Landlock",
        extra=fields(
            abi=abi, files="read-only", write=",".join(map(str, write)) or "none",
            connect=_shown(ports) if made.network else "any (the kernel cannot)",
            bind=_shown(bind_ports) if made.network else "any (the kernel cannot)", signals=made.signals,
        ),
    )  # fmt: skip
    return made


def _shown(ports: Iterable[int] | None) -> str:
    return "any" if ports is None else ",".join(map(str, ports)) or "none"


def endpoint_ports(endpoint: str, environ: Mapping[str, str]) -> list[int] | None:
    """Return the ports that an exporter connects to: the endpoint's and those of proxies; None when one is not said.

    Args:
        endpoint: a URL, or a gRPC target ("dns:///collector:4317", "unix:///run/otel.sock").
        environ: where proxies are named.
    """
    if endpoint.startswith("unix"):
        return []
    urls = [endpoint.removeprefix("dns:///").removeprefix("ipv4:").removeprefix("ipv6:")]
    urls += [environ[name] for proxy in _PROXIES for name in (proxy, proxy.upper()) if environ.get(name)]
    ports = []
    for url in urls:
        parts = urlsplit(url if "://" in url else f"//{url}")
        try:
            port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
        except ValueError:
            port = None
        if port is None:
            return None
        ports.append(port)
    return ports


def _readable(extra: Iterable[str | Path]) -> list[Path]:
    places = [*SYSTEM, *extra, sys.prefix, sys.base_prefix, sys.exec_prefix, *filter(None, sys.path)]
    places += ebpftrace.__path__
    paths = ssl.get_default_verify_paths()
    places += filter(
        None, (paths.cafile, paths.capath, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    )
    with contextlib.suppress(OSError):  # a symbolic link to wherever the resolver writes it
        places.append(str(Path("/etc/resolv.conf").resolve(strict=True)))
    return [Path(each) for each in dict.fromkeys(map(str, places))]


def _existing(path: str | Path) -> Path:
    path = Path(path)
    return path if path.exists() else path.parent


def _file_rights(abi: int) -> int:
    rights = _FIRST_FS
    rights |= _REFER if abi >= 2 else 0
    rights |= _TRUNCATE if abi >= 3 else 0
    return rights | (_IOCTL_DEV if abi >= 5 else 0)


@dataclass(frozen=True, slots=True)
class _Rules:
    read: list[Path]
    write: list[Path]
    connect: list[int] | None
    bind: list[int]
    abstract: bool


def _confine(abi: int, rules: _Rules) -> None:
    files = _file_rights(abi)
    network = (_BIND_TCP | (0 if rules.connect is None else _CONNECT_TCP)) if abi >= 4 else 0
    scoped = (_SCOPE_SIGNAL | (0 if rules.abstract else _SCOPE_ABSTRACT_UNIX)) if abi >= 6 else 0
    attributes = _Ruleset(files, network, scoped)
    size = 8 if abi < 4 else 16 if abi < 6 else 24  # an older kernel takes no longer one
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))
    checked(ruleset, "landlock_create_ruleset()")
    try:
        for path, rights in _path_rules(rules):
            _allow_path(ruleset, path, rights & files)
        for port, right in [(port, _BIND_TCP) for port in rules.bind] + [
            (port, _CONNECT_TCP) for port in rules.connect or ()
        ]:
            if network & right:
                _add_rule(ruleset, _RULE_NET_PORT, _NetPort(right, port), f"port {port}")
        set_no_new_privileges()
        checked(libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "landlock_restrict_self()")
    finally:
        os.close(ruleset)


def _path_rules(rules: _Rules) -> Iterator[tuple[Path, int]]:
    # libbpf before 1.2 opens "/" for the number of a descriptor when a map is shared; names can be listed, not read
    yield Path("/"), _READ_DIR
    for path in rules.read:
        yield path, _READ
    for path in (*rules.write, *map(Path, _WRITABLE)):
        yield path, _WRITE


def _allow_path(ruleset: int, path: Path, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:  # not on this machine: then there is nothing to allow
        logger.debug("Landlock: %s is left out: %s", path, error.strerror)
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _FILE_RIGHTS
        _add_rule(ruleset, _RULE_PATH_BENEATH, _PathBeneath(rights, fd), str(path))
    finally:
        os.close(fd)


def _add_rule(ruleset: int, kind: int, rule: ctypes.Structure, what: str) -> None:
    arguments = (ctypes.c_int(ruleset), ctypes.c_int(kind), ctypes.byref(rule), ctypes.c_uint32(0))
    checked(libc.syscall(_ADD_RULE, *arguments), what)
