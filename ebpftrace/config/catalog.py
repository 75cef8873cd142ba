# SPDX-License-Identifier: Apache-2.0
"""What the shipped programs are, for people and for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ebpftrace.config.check import check_program
from ebpftrace.config.files import all_shipped
from ebpftrace.config.load import load_document
from ebpftrace.config.objects import is_knob
from ebpftrace.decoders import chain
from ebpftrace.kernel.object import BpfObject
from ebpftrace.programs.catalog import program_name

if TYPE_CHECKING:
    from ebpftrace.config.files import ProgramFiles
    from ebpftrace.config.layout import Column, RecordLayout
    from ebpftrace.config.model import ProgramConfig

_HOOK = "ebpftrace.hook"


def describe_shipped() -> list[dict[str, Any]]:
    """Return each shipped program as what `ebpftrace list --json` prints.

    Raises:
        ConfigError: a program's file is wrong, or was not built.
    """
    return [_describe(files) for files in all_shipped()]


def _describe(files: ProgramFiles) -> dict[str, Any]:
    config = load_document(files.yaml.read_text(encoding="utf-8"), source=files.yaml.name).config
    assert files.object is not None  # noqa: S101  (all that is shipped has one)
    with BpfObject(files.stem, files.object.read_bytes()) as obj:
        hooks = [
            {"hook": function.section.removeprefix("?"), "function": function.name, "optional": function.optional}
            for function in obj.programs()
            if "/" in function.section
        ]
        knobs = _knobs(config, obj)
    return {
        "name": program_name(files.stem),
        "stem": files.stem,
        "description": config.description,
        "needs": "kernel BTF" if files.bcc is None else "kernel BTF, or BCC and the kernel's headers",
        "hooks": hooks,
        "spans": [_span(layout) for layout in check_program(files).layouts],
        "knobs": knobs,
    }


def _span(layout: RecordLayout) -> dict[str, Any]:
    columns = [column for column in layout.columns if not column.role]
    return {
        "name": layout.name,
        "ringbuf": layout.ringbuf,
        "hook": layout.attributes.get(_HOOK, ""),
        "attributes": [{"label": column.name, "key": column.key, "type": _gives(column)} for column in columns],
    }


def _gives(column: Column) -> str:
    """The type of the attribute."""
    return chain(column.kind, column.size, column.decoders, column.names).gives


def _knobs(config: ProgramConfig, obj: BpfObject) -> list[dict[str, Any]]:
    """The variables that may be set, with the values that the agent gives them when nobody says otherwise."""
    data = obj.rodata()
    found = []
    for name, field in sorted(obj.btf.variables(".rodata").items()):
        if is_knob(name, field):
            raw = data[field.offset : field.offset + field.size]
            value: Any = int.from_bytes(raw, "little", signed=field.kind == "signed")
            value = config.knobs.get(name, value)
            kind = "bool" if field.kind == "bool" else f"{field.kind} {field.size * 8} bits"
            found.append({"name": name, "type": kind, "default": bool(value) if kind == "bool" else value})
    lists = [name for name, value in config.knobs.items() if isinstance(value, list)]
    return found + [{"name": name, "type": "list of texts", "default": config.knobs[name]} for name in lists]
