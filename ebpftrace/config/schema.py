# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema of programs' files, which editors complete and check by.

Made of the types of `model` and the catalogue of decoders, so it says what the reader takes. What only
`ebpftrace check` can tell (whether labels fit the C struct) is not in it.

    python -m ebpftrace.config.schema    writes schema.json anew
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from ebpftrace.config import model
from ebpftrace.config.rules import MAX_FIELD_BYTES

FILE = Path(__file__).with_name("schema.json")

_ARGUMENT = re.compile(r"^(\w+): (.*(?:\n {4,}.*)*)", re.MULTILINE)
_SCALAR = {"type": ["string", "number", "boolean"]}  # what YAML takes 1 or true for; the reader takes it as text


def schema() -> dict[str, Any]:
    """Return the schema."""
    (root,), definitions = msgspec.json.schema_components([model.ProgramConfig], ref_template="#/$defs/{name}")
    for name, definition in definitions.items():
        _describe(definition, getattr(model, name))
    _refine(definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ebpftrace program",
        **root,
        "$defs": definitions,
    }


def schema_text() -> str:
    """Return the schema as the text of schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _describe(definition: dict[str, Any], kind: type) -> None:
    """Put the docstring's words where an editor shows them; drop what only means "not given"."""
    text, _, arguments = (inspect.getdoc(kind) or "").partition("\nArgs:\n")
    words = {name: _one_line(said) for name, said in _ARGUMENT.findall(inspect.cleandoc(arguments))}
    definition["description"] = _one_line(text)
    for name, value in definition["properties"].items():
        if name in words:
            value["description"] = words[name]
        if "enum" in value:
            value["enum"] = [each for each in value["enum"] if each != ""]
        if value.get("default") in ("", None, [], {}):
            value.pop("default", None)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _refine(definitions: dict[str, dict[str, Any]]) -> None:
    """Rules that the types do not say."""
    from ebpftrace.decoders import catalogue

    decoder, label = definitions["DecoderConfig"]["properties"], definitions["LabelConfig"]["properties"]
    decoder["name"] = {
        "oneOf": [{"const": entry.name, "description": entry.summary} for entry in catalogue()],
        "description": "the decoder",
    }
    decoder["static_map"]["additionalProperties"] = _SCALAR
    decoder["static_map"].pop("propertyNames", None)
    label["size"] |= {"minimum": 0, "maximum": MAX_FIELD_BYTES}
    label["padding"] |= {"minimum": 0, "maximum": MAX_FIELD_BYTES}
    label["name"]["description"] = f"{label['name']['description']} {_reserved()}"
    span = definitions["SpanConfig"]
    span["anyOf"] = [{"required": ["struct"]}, {"required": ["labels"]}]
    definitions["ProgramConfig"]["required"] = ["tracing"]
    definitions["ProgramConfig"]["properties"]["metrics"]["type"] = ["object", "null"]


def _reserved() -> str:
    return f"Names with a role of their own: {', '.join(model.RESERVED)}."


if __name__ == "__main__":
    FILE.write_text(schema_text(), encoding="utf-8")
