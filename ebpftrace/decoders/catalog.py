# SPDX-License-Identifier: Apache-2.0
"""All decoders: their names, what they take and what they give.

A decoder without "bytes" in what it takes cannot start a chain in the label form, where a field is nothing but bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebpftrace.decoders import (
    cgroups,
    devices,
    errnos,
    net,
    numbers,
    pci,
    process,
    reasons,
    sched,
    symbols,
    text,
    times,
)
from ebpftrace.decoders.values import Entry, Type, always, signed, unsigned

if TYPE_CHECKING:
    from collections.abc import Mapping

_INTEGER = (1, 2, 4, 8)

_BYTES: tuple[Type, ...] = ("bytes",)
_NUMBER: tuple[Type, ...] = ("bytes", "int")
_NUMERAL: tuple[Type, ...] = ("int", "text")

_BASIC = (
    Entry("uint", _BYTES, "int", "an unsigned number", always(unsigned), sizes=_INTEGER, packs=True, native="uint"),
    Entry("int", _BYTES, "int", "a signed number", always(signed), sizes=_INTEGER, packs=True, native="sint"),
    Entry(
        "float",
        ("bytes", "float", "int"),
        "float",
        "a `float` or `double`; another number becomes one",
        always(numbers.floating),
        sizes=(4, 8),
        native="float",
    ),
    Entry(
        "bool",
        ("bytes", "int", "float"),
        "bool",
        "true where anything is not zero",
        always(numbers.boolean),
        native="bool",
    ),
    Entry(
        "string",
        ("bytes", "text", "int"),
        "text",
        "text up to the first NUL; of a number, its digits",
        always(text.string),
        native="cstring",
    ),
    Entry("hex", _BYTES, "text", "hex digits in the order of memory", always(bytes.hex), packs=True, native="hex"),
    Entry(
        "enum",
        _NUMBER,
        "text",
        "the name that the program's C code has for the value",
        numbers.enum,
        sizes=_INTEGER,
        number=True,
    ),
    Entry(
        "static_map",
        _NUMERAL,
        "text",
        "the text that the file has for the value",
        lambda place: numbers.static_map(place.config.static_map, allow_unknown=place.config.allow_unknown),
        keys=("static_map", "allow_unknown"),
    ),
    Entry(
        "regexp",
        ("bytes", "text", "int"),
        "text",
        "what the first matching expression finds; no match, no span",
        lambda place: text.regexp(place.config.regexps),
        keys=("regexps",),
    ),
    Entry("duration", _NUMBER, "float", "nanoseconds as seconds", always(times.duration), sizes=(4, 8), number=True),
    Entry("micros", _NUMBER, "int", "microseconds as nanoseconds", always(times.micros), sizes=(4, 8), number=True),
    Entry(
        "timestamp",
        _NUMBER,
        "text",
        "CLOCK_MONOTONIC nanoseconds as UTC time (RFC 3339); nothing for 0",
        times.timestamp,
        sizes=(8,),
        number=True,
        lasting=False,
    ),
)

_PROCESSES = (
    Entry("argv", _BYTES, "texts", "arguments, each ended by a NUL", always(process.argv)),
    Entry("exec_name", _BYTES, "text", "`exec` and the last part of a path", always(process.exec_name)),
    Entry(
        "exit_code",
        _NUMBER,
        "int",
        "the exit code of a wait status; nothing after a signal",
        always(process.exit_code),
        sizes=(4,),
        number=True,
    ),
    Entry(
        "exit_error",
        _NUMBER,
        "text",
        "what went wrong, from a wait status; nothing for exit code 0",
        always(process.exit_error),
        sizes=(4,),
        number=True,
    ),
    Entry(
        "task_state",
        _NUMBER,
        "text",
        "the state in which a task left its CPU",
        always(sched.task_state),
        sizes=_INTEGER,
        number=True,
    ),
    Entry("syscall", _NUMERAL, "text", "a system call's name", always(sched.syscall)),
    Entry("errno", _NUMERAL, "text", "an error's name (`EPIPE`), of either sign; nothing for 0", always(errnos.errno)),
    Entry(
        "pid",
        _NUMBER,
        "text",
        "the command of a process or thread",
        always(process.pid),
        sizes=(4,),
        number=True,
        lasting=False,
        reads=("/proc",),
    ),
    Entry(
        "uid",
        _NUMBER,
        "text",
        "a user's name",
        always(process.uid),
        sizes=(4,),
        number=True,
        lasting=False,
        reads=("/etc",),
    ),
    Entry(
        "gid",
        _NUMBER,
        "text",
        "a group's name",
        always(process.gid),
        sizes=(4,),
        number=True,
        lasting=False,
        reads=("/etc",),
    ),
    Entry(
        "cgroup",
        _NUMERAL,
        "text",
        "a cgroup's directory, by its id",
        always(cgroups.cgroup),
        lasting=False,
        capability="CAP_DAC_READ_SEARCH",
        reads=("/proc", cgroups.CGROUPS),
    ),
    Entry(
        "cgroup_path",
        _NUMERAL,
        "text",
        "a cgroup's path within its hierarchy, by its id",
        always(cgroups.cgroup_path),
        lasting=False,
        capability="CAP_DAC_READ_SEARCH",
        reads=("/proc", cgroups.CGROUPS),
    ),
)

_KERNEL = tuple(
    Entry(
        name,
        takes,
        "text",
        summary,
        always(decode),
        sizes=(8,) if name == "ksym" else (),
        multiple=1 if name == "ksym" else 8,
        number=name == "ksym",
        lasting=False,
        capability="CAP_SYSLOG",
        reads=("/proc",),
        prepare=symbols.KERNEL.prepare,
    )
    for name, takes, summary, decode in (
        ("ksym", _NUMBER, "the kernel function or variable at an address", symbols.ksym),
        ("kstack", _BYTES, "a stack as a kernel function a line", symbols.kstack),
        ("kernel_stack", _BYTES, "a stack as `function+0x1f/0x40 [module]` a line", symbols.kernel_stack),
    )
)

_DEVICES = (
    Entry(
        "majorminor",
        _NUMBER,
        "text",
        "a block device's name, by its number as `stat` has it",
        always(devices.majorminor),
        sizes=(4,),
        number=True,
        lasting=False,
        reads=("/proc",),
    ),
    *(
        Entry(name, _NUMERAL, "text", summary, always(decode), reads=pci.PATHS)
        for name, summary, decode in (
            ("pci_vendor", "a PCI vendor's name", pci.pci_vendor),
            ("pci_device", "a PCI device's name, by its vendor's number × 65536 and its own", pci.pci_device),
            ("pci_class", "a PCI class's name", pci.pci_class),
            ("pci_subclass", "a PCI subclass's name, by its class's number × 256 and its own", pci.pci_subclass),
        )
    ),
)

_NETWORK = (
    Entry("inet_ip", _BYTES, "text", "an IPv4 or IPv6 address", always(net.inet_ip), sizes=(4, 16), packs=True),
    Entry(
        "sockaddr", _BYTES, "text", "address and port, or path, of a `struct sockaddr`", always(net.sockaddr), least=8
    ),
    Entry("dname", ("bytes", "text"), "text", "a domain name as DNS sends it", always(net.dname)),
    Entry(
        "ifname",
        _NUMBER,
        "text",
        "a network interface's name, by its index",
        always(net.ifname),
        sizes=(4,),
        number=True,
        lasting=False,
        reads=("/sys/class/net",),
    ),
    Entry(
        "tcp_state",
        _NUMBER,
        "text",
        "the state of a TCP socket",
        always(net.tcp_state),
        sizes=_INTEGER,
        number=True,
    ),
    *(
        Entry(name, _NUMBER, "text", summary, always(decode), sizes=(4,), number=True, reads=("/sys/kernel/btf",))
        for name, summary, decode in (
            ("drop_reason", "why the kernel threw a packet away", reasons.drop_reason),
            ("reset_reason", "why the kernel broke a connection off", reasons.reset_reason),
        )
    ),
)

ENTRIES: Mapping[str, Entry] = {entry.name: entry for entry in (*_BASIC, *_PROCESSES, *_KERNEL, *_DEVICES, *_NETWORK)}


def catalogue() -> tuple[Entry, ...]:
    """Return all decoders, by name."""
    return tuple(ENTRIES[name] for name in sorted(ENTRIES))
