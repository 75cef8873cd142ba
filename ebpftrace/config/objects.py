# SPDX-License-Identifier: Apache-2.0
"""What a program's file wants of its object beside the records: ring buffers, variables, maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebpftrace.config.problems import suggest

if TYPE_CHECKING:
    from ebpftrace.config.model import CgroupIdMapConfig, ProgramConfig
    from ebpftrace.config.problems import Problems
    from ebpftrace.kernel.btf import Field
    from ebpftrace.kernel.object import BpfObject

_KEY_BYTES = {"hash": 8, "cgrp_storage": 4}
_VALUE_BYTES = 8
_ADDRESS_BYTES = 8
_INTERNAL = "."  # libbpf's own maps, of data sections, have one in their names
_LOADERS = ("ebt_", "kaddr_", "has_")  # set by the loader: its own, addresses, what this kernel has


def check_object(config: ProgramConfig, obj: BpfObject, problems: Problems) -> None:
    """Note what the object does not have, or has otherwise.

    Args:
        config: what the file says.
        obj: the program's object, opened.
        problems: gets what is wrong.
    """
    rings, maps = obj.ring_names(), [name for name in obj.map_names() if _INTERNAL not in name]
    variables = obj.btf.variables(".rodata")
    for index, span in enumerate(config.tracing.spans):
        if span.ringbuf not in rings:
            what = f"the object has no ring buffer {span.ringbuf!r}"
            if span.ringbuf in maps:
                what = f"{span.ringbuf!r} is another kind of map"
            problems.add(f"tracing.spans[{index}].ringbuf", what, suggest(span.ringbuf, rings, "its ring buffers are"))
    for index, symbol in enumerate(config.kaddrs):
        _check_address(symbol, f"kaddrs[{index}]", variables, problems)
    if config.cgroup_id_map is not None:
        _check_cgroup_id_map(config.cgroup_id_map, obj, maps, problems)
    for name, value in config.knobs.items():
        if isinstance(value, list):
            _check_list(name, value, obj, maps, problems)
        else:
            _check_number(name, value, variables, problems)


def _check_address(symbol: str, key: str, variables: dict[str, Field], problems: Problems) -> None:
    variable = variables.get(f"kaddr_{symbol}")
    declare = f"declare `const volatile __u64 kaddr_{symbol};` in the program"
    if variable is None:
        problems.add(key, f"the object has no variable 'kaddr_{symbol}'", declare)
    elif variable.size != _ADDRESS_BYTES:
        what = f"'kaddr_{symbol}' has {variable.size} bytes, an address has {_ADDRESS_BYTES}"
        problems.add(key, what, declare)


def _check_cgroup_id_map(config: CgroupIdMapConfig, obj: BpfObject, maps: list[str], problems: Problems) -> None:
    if config.name not in maps:
        what = f"the object has no map {config.name!r}"
        problems.add("cgroup_id_map.name", what, suggest(config.name, maps, "it has"))
        return
    target, key_bytes = obj.map(config.name), _KEY_BYTES[config.type]
    if target.key_size != key_bytes:
        what = f"the keys of {config.name!r} have {target.key_size} bytes, those of type {config.type} have {key_bytes}"
        other = next((name for name, size in _KEY_BYTES.items() if size == target.key_size), "")
        mend = f"say `type: {other}` if it is one" if other else "give the map keys of that size"
        problems.add("cgroup_id_map.type", what, mend)
    if target.value_size != _VALUE_BYTES:
        what = f"the values of {config.name!r} have {target.value_size} bytes, not {_VALUE_BYTES}"
        problems.add("cgroup_id_map.name", what, "give the map values of type __u64")


def _check_number(name: str, value: int, variables: dict[str, Field], problems: Problems) -> None:
    key, variable = f"knobs.{name}", variables.get(name)
    if variable is None:
        known = [each for each, field in variables.items() if is_knob(each, field)]
        what = f"the object has no `const volatile` variable {name!r}"
        problems.add(key, what, suggest(name, known, "it has"))
        return
    if variable.kind not in ("unsigned", "signed", "bool") or variable.count:
        problems.add(key, f"{name!r} is no number in the object", "set it otherwise")
        return
    bits = 1 if variable.kind == "bool" else variable.size * 8
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if variable.kind == "signed" else (0, (1 << bits) - 1)
    if not least <= value <= most:
        problems.add(key, f"{value} does not fit: {name!r} goes from {least} to {most}", "give a number that does")


def _check_list(name: str, value: list[str], obj: BpfObject, maps: list[str], problems: Problems) -> None:
    key = f"knobs.{name}"
    if name not in maps:
        problems.add(key, f"the object has no map {name!r} for a list", suggest(name, maps, "it has"))
        return
    most = obj.map(name).key_size - 1
    for index, entry in enumerate(value):
        if len(entry.encode()) > most:
            what = f"{entry!r} has {len(entry.encode())} bytes, and the keys of {name!r} have room for {most}"
            problems.add(f"{key}[{index}]", what, "shorten it")


def is_knob(name: str, field: Field) -> bool:
    """Is a variable in read-only data one for people to set? Others are the loader's, or keep a record's type."""
    number = field.kind in ("unsigned", "signed", "bool") and not field.count
    return number and not any(name.startswith(start) or f"_{start}" in name for start in _LOADERS)
