# SPDX-License-Identifier: Apache-2.0
"""Capabilities: held to attach programs, given up before anything is read from the kernel or the network.

    privileges = reduce(parse_keep("auto"))    # main thread, programs attached, no other thread yet
    with privileges.raised():                  # later, at a reload: this thread only
        load_again()

A thread inherits the capabilities of the one that starts it, so all later threads have the little that is left. What
is kept permitted and not effective takes a system call to use: an error in a decoder cannot use it by accident.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.agent.linux import checked, libc, other_threads, prctl, set_no_new_privileges
from ebpftrace.agent.logs import fields
from ebpftrace.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

logger = logging.getLogger("ebpftrace.agent")

# include/uapi/linux/capability.h, in the order of the bits
_BITS = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
NAMES = tuple(f"CAP_{name}" for name in _BITS.split())
"""Names of all capabilities that Linux has had so far."""

AUTO = frozenset({"CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG"})
"""Load and attach at a reload; read counters from maps; read addresses in /proc/kallsyms."""

# Used all the time; whatever else is kept is for reloads only.
_RUNNING = frozenset({"CAP_BPF", "CAP_SYSLOG", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"})

_VERSION_3 = 0x20080522
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
# NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE with their locks, and KEEP_CAPS locked at 0
_SECUREBITS = 0xEF


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@dataclass(frozen=True, slots=True)
class CapabilitySets:
    """The three sets of one thread, as masks of bits."""

    effective: int
    permitted: int
    inheritable: int


def read_capabilities() -> CapabilitySets:
    """Return the calling thread's sets."""
    data = (_Data * 2)()
    checked(libc.capget(ctypes.byref(_Header(_VERSION_3, 0)), data), "capget()")
    low, high = data
    return CapabilitySets(
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def write_capabilities(sets: CapabilitySets) -> None:
    """Change the calling thread's sets.

    Raises:
        OSError: EPERM for more than is permitted.
    """
    masks = (sets.effective, sets.permitted, sets.inheritable)
    data = (_Data * 2)(*(_Data(*(mask >> shift & 0xFFFFFFFF for mask in masks)) for shift in (0, 32)))
    checked(libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), data), "capset()")


def mask_of(names: Iterable[str]) -> int:
    """Return the bits of the named capabilities."""
    return sum(1 << NAMES.index(name) for name in set(names))


def names_of(mask: int) -> tuple[str, ...]:
    """Return the capabilities of a mask; one newer than this list is "CAP_<number>"."""
    return tuple(
        NAMES[bit] if bit < len(NAMES) else f"CAP_{bit}" for bit in range(mask.bit_length()) if mask >> bit & 1
    )


def parse_keep(text: str) -> frozenset[str] | None:
    """Return what `--capabilities-keep` asks for; None = drop nothing.

    Args:
        text: "auto", "all", "none", or names with commas between, with or without "cap_", in any case.

    Raises:
        ConfigError: a name that is no capability.
    """
    word = text.strip().lower()
    if word in ("auto", "all", "none"):
        return {"auto": AUTO, "all": None, "none": frozenset[str]()}[word]
    found = {"CAP_" + name.strip().upper().removeprefix("CAP_") for name in text.split(",") if name.strip()}
    unknown = sorted(found - set(NAMES))
    if unknown or not found:
        raise ConfigError(
            f"--capabilities-keep {text!r}: "
            + (f"there is no capability {', '.join(unknown)}" if unknown else "it names nothing")
            + "; write auto, all, none, or names such as cap_bpf,cap_perfmon"
        )
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Privileges:
    """What the agent goes on with.

    Args:
        permitted: names of the capabilities that can be raised.
        effective: those in use now.
        missing: those that were to be kept and were never held.
        locked: securebits and the bounding set are closed too, so that user id 0 is worth nothing.
    """

    permitted: tuple[str, ...]
    effective: tuple[str, ...]
    missing: tuple[str, ...] = ()
    locked: bool = False

    @property
    def can_load(self) -> bool:
        """May programs be loaded again, in `raised()`?"""
        return "CAP_SYS_ADMIN" in self.permitted or {"CAP_BPF", "CAP_PERFMON"} <= set(self.permitted)

    def for_loading(self) -> contextlib.AbstractContextManager[None]:
        """Return `raised()`.

        Raises:
            UnsupportedError: what loading takes was given up.
        """
        if not self.can_load:
            raise UnsupportedError(
                "loading at a reload", "CAP_BPF and CAP_PERFMON were given up",
                "restart the agent, or keep them: --capabilities-keep bpf,perfmon",
            )  # fmt: skip
        return self.raised()

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Make all that is permitted effective in the block, for this thread and those that it starts there."""
        before = read_capabilities()
        write_capabilities(CapabilitySets(before.permitted, before.permitted, before.inheritable))
        try:
            yield
        finally:
            write_capabilities(before)


def reduce(keep: frozenset[str] | None) -> Privileges:
    """Give up all capabilities but `keep`, for good, and log what is left.

    Args:
        keep: as `parse_keep` returns it; None = leave everything as it is.

    Raises:
        UnsupportedError: there are other threads already, which would keep what they have; or the kernel refused.
    """
    if keep is None:
        held = read_capabilities()
        logger.info("capabilities are left as they are", extra=fields(permitted=_words(names_of(held.permitted))))
        return Privileges(names_of(held.permitted), names_of(held.effective))
    _refuse_threads()
    try:
        privileges = _reduce(keep)
    except OSError as error:
        raise UnsupportedError(
            "giving up capabilities", f"{error.filename}: {error.strerror}", "--capabilities-keep all does without"
        ) from error
    logger.info(
        "capabilities reduced",
        extra=fields(
            permitted=_words(privileges.permitted),
            effective=_words(privileges.effective),
            missing=_words(privileges.missing),
            locked=privileges.locked,
            uid=os.geteuid(),
        ),
    )
    return privileges


def _words(names: tuple[str, ...]) -> str:
    return ",".join(name.removeprefix("CAP_").lower() for name in names) or "none"


def _refuse_threads() -> None:
    others = other_threads()
    if others:
        names = sorted(_thread_names() - {_thread_name(str(os.getpid()))})
        raise UnsupportedError(
            "giving up capabilities",
            f"{others} other thread{'s run' if others > 1 else ' runs'} already and would keep them "
            f"({', '.join(names) or 'unnamed'})",
            "start no thread before; --capabilities-keep all does without",
        )


def _thread_names() -> set[str]:
    return {_thread_name(task.name) for task in Path("/proc/self/task").iterdir()}


def _thread_name(task: str) -> str:
    try:
        return Path(f"/proc/self/task/{task}/comm").read_text(errors="replace").strip()
    except OSError:  # it ended
        return ""


def _reduce(keep: frozenset[str]) -> Privileges:
    held = read_capabilities()
    permitted = held.permitted & mask_of(keep)
    effective = permitted & mask_of(_RUNNING)
    if keep == AUTO and not permitted & mask_of({"CAP_BPF"}):
        # where a container's runtime knows no newer names this one stands in for them
        stand_in = held.permitted & mask_of({"CAP_SYS_ADMIN"})
        permitted, effective = permitted | stand_in, effective | stand_in
    set_no_new_privileges()
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    locked = bool(held.permitted & mask_of({"CAP_SETPCAP"}))
    if locked:  # without it neither set can be closed; a user other than root has nothing to gain from them either
        write_capabilities(CapabilitySets(held.permitted, held.permitted, held.inheritable))
        _close_bounding_set()
        if prctl(_PR_GET_SECUREBITS) != _SECUREBITS:
            prctl(_PR_SET_SECUREBITS, _SECUREBITS)
    write_capabilities(CapabilitySets(effective, permitted, 0))
    return Privileges(
        names_of(permitted), names_of(effective), tuple(sorted(keep - set(names_of(held.permitted)))), locked
    )


def _close_bounding_set() -> None:
    for bit in range(64):
        try:
            if prctl(_PR_CAPBSET_READ, bit):
                prctl(_PR_CAPBSET_DROP, bit)
        except OSError:  # EINVAL: the kernel knows none from this bit on
            if bit < len(NAMES) - 1:
                raise
            return
