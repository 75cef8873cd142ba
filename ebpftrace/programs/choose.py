# SPDX-License-Identifier: Apache-2.0
"""Which functions of an object this kernel can run: found out by asking and trying, before anything is loaded.

libbpf loads an object whole or not at all, so one hook that the kernel lacks would take the others with it. Functions
in sections that begin with "?" are extras: loaded where the kernel allows, and not missed where it does not. An object
learns which of them it has from its knobs `has_<function>`. An extra that is called `<function>__without_<tracepoint>`
stands in for a tracepoint: it is loaded only where the kernel does not have that.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ebpftrace.kernel._native import lib, take_log

if TYPE_CHECKING:
    from ebpftrace.kernel.btf import Btf
    from ebpftrace.kernel.object import BpfObject, Program

_SK_STORAGE_GET = 107  # enum bpf_func_id
_STANDS_IN_FOR = "__without_"
_TRAMPOLINES = {"fentry": lib.BPF_TRACE_FENTRY, "fexit": lib.BPF_TRACE_FEXIT}


def choose_functions(obj: BpfObject, kernel: Btf, *, extras: bool = True) -> dict[str, str]:
    """Have `obj` load what this kernel can run.

    Args:
        obj: opened, not loaded.
        kernel: the kernel's types.
        extras: load those, too.

    Returns:
        Why a function's hook was left out, by the hook ("tp_btf/block_rq_insert"); extras are not among them.
    """
    lacking = lacks(obj)
    missing = {}
    knobs = obj.btf.variables(".rodata")
    for function in obj.programs():
        reason = lacking or why_not(function, kernel, extras=extras)
        if function.optional:
            obj.set_autoload(function.name, autoload=not reason)
            name = function.name.partition(_STANDS_IN_FOR)[0]
            if not reason and f"has_{name}" in knobs:
                obj.set_rodata(f"has_{name}", 1)
        elif reason:
            obj.set_autoload(function.name, autoload=False)
            missing[function.section] = reason
    return missing


def lacks(obj: BpfObject) -> str:
    """Return what this kernel does not give to BTF tracepoints though all of the object needs it; "" when nothing."""
    if not obj.keeps_in_sockets():
        return ""
    code = lib.ebt_probe_helper(_SK_STORAGE_GET)
    take_log()
    # 8e4597c627fb ("bpf: Allow using bpf_sk_storage in FENTRY/FEXIT/RAW_TP"), 5.11
    return "this kernel has no storage in sockets for tracing (bpf_sk_storage_get)" if code == -errno.EINVAL else ""


def why_not(function: Program, kernel: Btf, *, extras: bool = True) -> str:
    """Return why a function is not to be loaded here; "" when it is."""
    if function.optional and not extras:
        return "extras are switched off"
    reason = _refused(function.section, kernel)
    better = function.name.partition(_STANDS_IN_FOR)[2]
    if not reason and function.optional and kernel.has_tracepoint(better):
        return f"this kernel has the tracepoint {better}, which is better"
    return reason


def _refused(section: str, kernel: Btf) -> str:
    """Why a hook cannot be had here; "" when it can, or when only attaching will tell."""
    kind, _, hook = section.partition("/")
    kind = kind.removesuffix(".s")
    if kind == "tp_btf":
        return "" if kernel.has_tracepoint(hook) else f"this kernel has no tracepoint {hook}"
    if kind in _TRAMPOLINES:
        code = lib.ebt_probe_tracing(hook.encode(), _TRAMPOLINES[kind])
        take_log()
        if code in (-errno.ESRCH, -errno.ENOENT):
            return f"this kernel has no function {hook} to attach to"
        return f"this kernel refuses {kind}: {errno.errorcode.get(-code, str(-code))}" if code < 0 else ""
    return ""


def kernel_knobs(kernel: Btf) -> dict[str, int]:
    """Return what objects may want to know of this kernel's tracepoints, by the name of the knob."""
    return {
        "has_prev_state": int(kernel.tracepoint_arguments("sched_switch") >= 4),
        "block_rq_has_queue": int(kernel.tracepoint_arguments("block_rq_issue") >= 2),
        "block_getrq_has_queue": int(kernel.tracepoint_arguments("block_getrq") >= 2),
    }
