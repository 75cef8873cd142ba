# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from ebpftrace.config import DecoderConfig, load_program_config
from ebpftrace.errors import ConfigError
from ebpftrace.programs import find, names

GOOD = """
description: an example
tracing:
  spans:
    - name: example
      ringbuf: events
      struct: ebt_example
      type: 3
      hook: tp_btf/example
      labels:
        - {name: pid, attribute: process.pid, omit: 0}
        - name: cause
          role: span_name
          decoders: [{name: static_map, static_map: {1: one, 2: two}}]
"""


def test_load():
    """A program's file becomes typed values."""
    config = load_program_config(GOOD, source="example.yaml")
    [span] = config.tracing.spans

    assert ("an example", "example", 3) == (config.description, span.name, span.type)
    assert ("process.pid", "", 0) == (span.labels[0].attribute, span.labels[0].role, span.labels[0].omit)
    assert [DecoderConfig("static_map", {1: "one", 2: "two"})] == span.labels[1].decoders


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("type: 3", "type: three", r"tracing\.spans\[0\]\.type"),
        ("      hook: tp_btf/example\n", "", "hook"),
        ("omit: 0", "omit: 0, colour: red", "colour"),
        ("role: span_name", "role: king", "role"),
        ("role: span_name", "role: span_name\n          attribute: both", "label 'cause'.*attribute or a role"),
        (", attribute: process.pid", "", "label 'pid'.*attribute or a role"),
        ("description: an example", "", "description"),
        ("tracing:", "tracing: [", "not YAML"),
        (GOOD, "", "Expected `object`"),
        (GOOD, "- 1", "Expected `object`"),
    ],
)
def test_mistakes(old, new, message):
    """A mistake is a ConfigError that names the file and the place."""
    with pytest.raises(ConfigError, match=message) as caught:
        load_program_config(GOOD.replace(old, new), source="example.yaml")
    assert str(caught.value).startswith("example.yaml: ")


def test_shipped_programs():
    """Every shipped program's file is right, describes itself, and has distinct record types."""
    assert {"exec", "sched"} <= set(names())
    for name in names():
        config = find(name).config()
        types = [span.type for span in config.tracing.spans]
        assert config.description
        assert len(types) == len(set(types)) > 0


def test_unknown_program():
    """A program that is not shipped is a ConfigError that has those that are."""
    with pytest.raises(ConfigError, match="no program 'nothing'; there are: exec, sched"):
        find("nothing")


def test_not_built(monkeypatch, tmp_path):
    """A package whose objects were not built says how to build it."""
    import importlib.resources

    from ebpftrace.errors import UnsupportedError

    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(UnsupportedError, match="pip install"):
        find("sched").object_bytes()
