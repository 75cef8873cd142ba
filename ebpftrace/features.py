# SPDX-License-Identifier: Apache-2.0
"""What this kernel and this process's privileges allow: found out by trying, never by the kernel's version."""

from __future__ import annotations

import errno
import mmap
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.errors import BpfError, EbpftraceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ebpftrace.kernel.btf import Btf
    from ebpftrace.programs import ShippedProgram

# include/uapi/linux/capability.h
_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that was looked at.

    Args:
        name: what it is.
        available: is it there?
        detail: what was seen.
        required: the library cannot trace without it.
        use: what it is used for here.
        hint: what to do when it is missing; "" when nothing is to be done.
    """

    name: str
    available: bool
    detail: str
    required: bool = False
    use: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was looked at, in the order in which to mend it."""

    features: tuple[Feature, ...]

    @property
    def usable(self) -> bool:
        """Can the library trace here, by itself or by an agent?"""
        return self.by_agent or all(feature.available for feature in self.features if feature.required)

    @property
    def by_agent(self) -> bool:
        """Does it take an agent, and is there one that lets this process in?"""
        found = {feature.name: feature.available for feature in self.features}
        needed = (_AGENT, "machine", "libbpf", "OpenTelemetry SDK")
        return not found.get("privileges", False) and all(found.get(name, False) for name in needed)


def probe() -> Report:
    """Look at everything; takes some tenths of a second and leaves nothing behind."""
    found = [_machine(), _libbpf()]
    if not found[-1].available:
        return Report(tuple(found))
    found += [_privileges(), _lockdown(), *_kernel_btf(), *_maps(), *_hooks(), *_programs()]
    found += [_cgroups(), _mount("/sys/fs/bpf", "bpf", "bpffs", "nothing is pinned; not needed")]
    found += [_mount("/sys/kernel/tracing", "tracefs", "tracefs", "BTF tracepoints do without; not needed")]
    found += [_agent(), _sdk(), _exporter(), *_context_hooks(), _otel_context()]
    return Report(tuple(found))


def _machine() -> Feature:
    machine = platform.machine()
    known = machine in ("x86_64", "aarch64")
    return Feature(
        "machine", known, f"Linux {platform.release()} {machine}", required=True,
        hint="x86_64 and aarch64 are supported",
    )  # fmt: skip


def _libbpf() -> Feature:
    try:
        from ebpftrace.kernel._native import libbpf_version
    except EbpftraceError as error:
        return Feature("libbpf", False, str(error), required=True, hint="apt-get install libbpf1")
    return Feature("libbpf", True, libbpf_version(), required=True, use="loading and attaching")


def _privileges() -> Feature:
    held = effective_capabilities()
    enough = "CAP_SYS_ADMIN" in held or {"CAP_BPF", "CAP_PERFMON"} <= held
    return Feature(
        "privileges", enough, f"uid {os.geteuid()}, " + (", ".join(sorted(held)) or "no CAP_BPF, CAP_PERFMON"),
        required=True, use="loading BPF programs",
        hint=("root's capabilities were dropped: " if os.geteuid() == 0 else "run as root, or ")
        + "give the process CAP_BPF and CAP_PERFMON (systemd: AmbientCapabilities=; "
        "containers: --cap-add BPF --cap-add PERFMON)",
    )  # fmt: skip


def effective_capabilities() -> set[str]:
    """Return those of CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN that this process holds."""
    for line in _lines("/proc/self/status"):
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return {name for name, bit in _CAPABILITIES.items() if mask >> bit & 1}
    return set()


def _lines(path: str) -> list[str]:
    """A file's lines; none where /proc is not mounted."""
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _lockdown() -> Feature:
    try:
        text = Path("/sys/kernel/security/lockdown").read_text().strip()
    except OSError:
        return Feature("lockdown", True, "securityfs is not mounted", use="must not be 'confidentiality'")
    level = text.partition("[")[2].partition("]")[0] or text
    return Feature(
        "lockdown", level != "confidentiality", level, required=True, use="must not be 'confidentiality'",
        hint="boot with lockdown=integrity or none",
    )  # fmt: skip


def _kernel_btf() -> list[Feature]:
    from ebpftrace.kernel.btf import Btf

    try:
        btf = Btf.kernel()
    except EbpftraceError as error:
        return [
            Feature(
                "kernel BTF", False, str(error), required=True,
                hint="use a kernel with CONFIG_DEBUG_INFO_BTF=y; in a container, make /sys/kernel/btf visible",
            )
        ]  # fmt: skip
    return [
        Feature("kernel BTF", True, "/sys/kernel/btf/vmlinux", required=True, use="fields of the running kernel"),
        _blocked_syscall(btf),
        _throttling(btf),
    ]


def _blocked_syscall(btf: Btf) -> Feature:
    there = btf.has_enumerator("bpf_func_id", "BPF_FUNC_task_pt_regs")
    return Feature(
        "system call of a blocked thread", there, "bpf_task_pt_regs()" if there else "no bpf_task_pt_regs()",
        use="telling disk, network, lock and sleep apart",
        hint="a kernel from 5.15 on has it; without it waits are 'page_fault' or 'other'",
    )  # fmt: skip


def _throttling(btf: Btf) -> Feature:
    if btf.has_field("task_struct", "throttled"):
        return Feature("CPU quota", True, "task_struct.throttled", use="the cause 'throttled'")
    there = btf.has_field("cfs_rq", "throttle_count")
    return Feature(
        "CPU quota", there, "cfs_rq.throttle_count" if there else "the kernel has no CPU bandwidth control",
        use="the cause 'throttled'", hint="a kernel with CONFIG_CFS_BANDWIDTH=y",
    )  # fmt: skip


def _attempt(try_it: Callable[[], object]) -> str:
    """Return "" when it works, else why not."""
    try:
        try_it()
    except BpfError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return ""


def _maps() -> list[Feature]:
    from ebpftrace.kernel.maps import Map

    mapped = _attempt(lambda: Map.create_array("ebt_probe", value_size=64, max_entries=64, mmapable=True).close())
    ring = _attempt(lambda: Map.create_ring("ebt_probe", mmap.PAGESIZE).close())
    return [
        Feature(
            "memory-mapped maps", not mapped, mapped or "BPF_F_MMAPABLE", required=True,
            use="publishing without a system call", hint="a kernel from 5.5 on; EPERM: see privileges",
        ),
        Feature(
            "ring buffers", not ring, ring or "BPF_MAP_TYPE_RINGBUF", required=True,
            use="records", hint="a kernel from 5.8 on; EPERM: see privileges",
        ),
    ]  # fmt: skip


def _hooks() -> list[Feature]:
    from ebpftrace.kernel._native import lib, take_log

    def tracing(function: str, kind: int) -> str:
        code = lib.ebt_probe_tracing(function.encode(), kind)
        take_log()
        return errno.errorcode.get(-code, str(-code)) if code < 0 else ""

    tracepoint = tracing("sched_switch", lib.BPF_TRACE_RAW_TP)
    fentry = tracing("vfs_fsync", lib.BPF_TRACE_FENTRY)
    found = [
        Feature(
            "BTF tracepoints", not tracepoint, tracepoint or "tp_btf/sched_switch attaches", required=True,
            use="all shipped programs", hint="EPERM: see privileges; ENOENT: see kernel BTF",
        ),
        Feature("fentry", not fentry, fentry or "fentry/vfs_fsync attaches", use="extras of cfs-throttling and sock"),
    ]  # fmt: skip
    for name in ("kprobe", "uprobe"):
        there = Path(f"/sys/bus/event_source/devices/{name}/type").exists()
        detail = "perf event source" if there else "not in this kernel"
        found.append(Feature(name, there, detail, use="no shipped program needs it"))
    return found


def _programs() -> list[Feature]:
    """Load, attach and take off each shipped program: the only proof that counts."""
    from ebpftrace import programs
    from ebpftrace.kernel.btf import Btf
    from ebpftrace.settings import Settings

    try:
        kernel = Btf.kernel()
    except EbpftraceError:
        return []  # said already
    found = []
    for name in programs.names():
        problem, detail = _try_program(programs.find(name), kernel)
        found.append(
            Feature(
                f"program {name}", not problem, problem or detail, required=name in Settings().programs,
                use=programs.find(name).config().description, hint="`ebpftrace -v run ...` shows the kernel's words",
            )
        )  # fmt: skip
    return found


def _try_program(program: ShippedProgram, kernel: Btf) -> tuple[str, str]:
    """Why a program cannot be attached, or "" and the hooks that it has here."""
    from ebpftrace.kernel.object import BpfObject
    from ebpftrace.programs.choose import choose_functions, kernel_knobs
    from ebpftrace.programs.knobs import set_numbers

    try:
        with BpfObject(program.name, program.object_bytes()) as obj:
            missing = choose_functions(obj, kernel)
            set_numbers(obj, kernel_knobs(kernel), known_only=True)
            obj.load()
            obj.attach()
            hooks = ", ".join(function.section for function in obj.attachable())
    except EbpftraceError as error:
        return str(error), ""
    if not hooks:
        return "; ".join(dict.fromkeys(missing.values())), ""
    return "", hooks + "".join(f"; without {hook}: {reason}" for hook, reason in missing.items())


def _cgroups() -> Feature:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return Feature("cgroups", True, "v2 (cpu.max)", use="CPU quotas")
    if Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").exists() or Path("/sys/fs/cgroup/cpu/cpu.stat").exists():
        return Feature("cgroups", True, "v1 (cpu.cfs_quota_us)", use="CPU quotas")
    return Feature("cgroups", False, "no cpu controller under /sys/fs/cgroup", use="CPU quotas; the demo's throttling")


def _mount(path: str, kind: str, name: str, use: str) -> Feature:
    mounts = (line.split() for line in _lines("/proc/mounts"))
    there = any(fields[1] == path and fields[2] == kind for fields in mounts)
    return Feature(name, there, path if there else "not mounted", use=use)


_AGENT = "agent"


def _agent() -> Feature:
    """Register, as an application does, and leave."""
    from ebpftrace.context.agent_link import AgentLink
    from ebpftrace.runtime.by_agent import NEVER, socket_path
    from ebpftrace.settings import resolve

    use = "applications that may not load BPF programs"
    settings = resolve({})
    if settings.agent_socket == NEVER:
        return Feature(_AGENT, False, "ruled out by EBPFTRACE_AGENT_SOCKET", use=use)
    path = socket_path(settings)
    try:
        link = AgentLink(path)
    except EbpftraceError as error:
        return Feature(_AGENT, False, str(error), use=use, hint="docs/howto/unprivileged.md")
    link.table.close()
    link.close()
    programs = ", ".join(sorted(link.welcome.programs)) or "none"
    return Feature(_AGENT, True, f"{path} lets this process in; its programs: {programs}", use=use)


def _sdk() -> Feature:
    from importlib import metadata

    try:
        version = metadata.version("opentelemetry-sdk")
    except metadata.PackageNotFoundError:
        return Feature("OpenTelemetry SDK", False, "not installed", required=True, hint="pip install opentelemetry-sdk")
    return Feature("OpenTelemetry SDK", True, version, required=True, use="spans")


def _otel_context() -> Feature:
    from ebpftrace.runtime.process_context import try_out

    name, use = "context for other readers", "OTEP 4719 and 4947: profilers find the current span"
    try:
        there, detail = try_out()
    except Exception as error:  # noqa: BLE001  (an extension that is not built, a broken SDK: said above already)
        there, detail = False, f"{type(error).__name__}: {error}"
    return Feature(name, there, detail, use=use, hint="docs/howto/otel-context.md says when there is none")


def _exporter() -> Feature:
    from importlib.metadata import entry_points

    names = sorted({entry.name for entry in entry_points(group="opentelemetry_traces_exporter")})
    otlp = [name for name in names if name.startswith("otlp")]
    return Feature(
        "OTLP exporter", bool(otlp), ", ".join(names) or "none installed",
        use="programs that set up no exporter themselves (`ebpftrace run`)", hint="pip install 'ebpftrace[otlp]'",
    )  # fmt: skip


def _context_hooks() -> list[Feature]:
    """Try them in this process, with a context table that no kernel reads."""
    try:
        from ebpftrace.context import trial
    except ImportError:  # the SDK is missing, or the publisher is not built: said already
        return []
    return [
        Feature(
            f"context hook {hook.name}", hook.on, hook.detail, use="the current span over switches",
            hint="EBPFTRACE_CONTEXT_HOOKS chooses",
        )
        for hook in trial.hooks_that_work()
    ]  # fmt: skip
