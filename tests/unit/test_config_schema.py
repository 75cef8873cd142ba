# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema for editors."""

from __future__ import annotations

import json

import msgspec
import pytest

from ebpftrace.config import model
from ebpftrace.config.schema import FILE, schema, schema_text
from ebpftrace.decoders import catalogue


def test_current():
    """schema.json is what the types say now."""
    assert schema_text() == FILE.read_text(), "run: python -m ebpftrace.config.schema"


def test_covers_the_format():
    """Every key of the format is in the schema and is explained, and no other key is allowed."""
    definitions = json.loads(schema_text())["$defs"]
    for name, definition in definitions.items():
        kind = getattr(model, name)
        assert {field.name for field in msgspec.structs.fields(kind)} == set(definition["properties"])
        assert definition["additionalProperties"] is False
        for key, value in definition["properties"].items():
            assert value.get("description"), f"{name}.{key}: say what it is in the docstring"


def test_decoders():
    """The decoders are those of the catalogue, each with its line."""
    choices = schema()["$defs"]["DecoderConfig"]["properties"]["name"]["oneOf"]

    assert {entry.name: entry.summary for entry in catalogue()} == {
        each["const"]: each["description"] for each in choices
    }


@pytest.mark.parametrize("key", ["role", "kind"])
def test_choices(key):
    """What means "not given" is not offered as a choice."""
    definitions = schema()["$defs"]
    choices = definitions["LabelConfig" if key == "role" else "SpanConfig"]["properties"][key]["enum"]

    assert "" not in choices
    assert len(choices) >= 5
