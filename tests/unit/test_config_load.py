# SPDX-License-Identifier: Apache-2.0
"""What a program's YAML file may say, and what is told of one that says something else."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.config import ConfigProblems, DecoderConfig, Problem, load_document, load_program_config
from ebpftrace.config.model import RESERVED, CgroupIdMapConfig, LabelConfig, ProgramConfig, SpanConfig
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

# In the form of ebpf_exporter's examples: every key that its tracing and its agent's surroundings have
EXPORTER = """
metrics:
  counters:
    - name: things_total
      help: metrics may have what they like
      labels: [{name: x, size: 8, decoders: [{name: nothing_we_know}]}]
tracing:
  spans:
    - name: queue
      ringbuf: queue_spans
      service: disk
      labels:
        - name: trace_id
          size: 16
          decoders:
            - name: hex
        - name: parent_span_id
          size: 8
          decoders:
            - name: hex
        - name: span_id
          size: 8
          decoders:
            - name: hex
        - name: span_monotonic_timestamp_ns
          size: 8
          decoders:
            - name: uint
        - name: span_duration_ns
          size: 8
          decoders:
            - name: uint
        - name: device
          size: 4
          decoders:
            - name: majorminor
        - name: sync
          size: 1
          padding: 3
          decoders:
            - name: uint
            - name: static_map
              allow_unknown: true
              static_map:
                0: no
                1: yes
        - name: comm
          size: 16
          decoders:
            - name: string
            - name: regexp
              regexps:
                - ^(kworker).*$
                - ^.*$
    - ringbuf: end_spans
      labels: []
kaddrs:
  - tcp_sendmsg
cgroup_id_map:
  name: ids
  type: cgrp_storage
  regexps:
    - ^.*(system.slice/.*)$
"""


def problems(text):
    """The problems of a file, as (line, key, what)."""
    with pytest.raises(ConfigProblems) as caught:
        load_program_config(text, source="example.yaml")
    return [(problem.line, problem.key, problem.what) for problem in caught.value.problems]


def test_load():
    """A program's file becomes typed values."""
    config = load_program_config(GOOD, source="example.yaml")
    [span] = config.tracing.spans

    assert ("an example", "example", 3) == (config.description, span.name, span.type)
    assert ("process.pid", "", 0) == (span.labels[0].attribute, span.labels[0].role, span.labels[0].omit)
    assert [DecoderConfig("static_map", {1: "one", 2: "two"})] == span.labels[1].decoders


def test_exporter_form():
    """A file in ebpf_exporter's form is taken as it is, with texts as they are written and not as YAML reads them."""
    text = EXPORTER.replace("      labels: []\n", "      labels: [{name: x, size: 1, decoders: [{name: uint}]}]\n")
    config = load_document(text, source="disk.yaml").config
    queue, end = config.tracing.spans

    assert ("queue", "queue_spans", "disk") == (queue.name, queue.ringbuf, queue.service)
    assert ("", "end_spans") == (end.name, end.ringbuf)
    assert {"trace_id", "parent_span_id", "span_id"} <= {label.name for label in queue.labels} & set(RESERVED)
    sync = queue.labels[6]
    assert (1, 3) == (sync.size, sync.padding)
    assert [DecoderConfig("uint"), DecoderConfig("static_map", {0: "no", 1: "yes"}, True)] == sync.decoders
    assert ["^(kworker).*$", "^.*$"] == queue.labels[7].decoders[1].regexps
    assert ["tcp_sendmsg"] == config.kaddrs
    assert CgroupIdMapConfig("ids", ["^.*(system.slice/.*)$"], "cgrp_storage") == config.cgroup_id_map


def test_metrics_are_one_warning(caplog):
    """A file that has metrics too is taken, with one warning that says they are ignored."""
    text = GOOD + "metrics:\n  histograms: [1, 2, 3]\n"
    with caplog.at_level(logging.WARNING):
        load_program_config(text, source="example.yaml")

    assert ["example.yaml:15: metrics: is ignored: metrics are for ebpf_exporter; the spans of this file are used"] == [
        record.getMessage() for record in caplog.records
    ]


def test_only_metrics():
    """A file with metrics alone has nothing to trace."""
    [(line, key, what)] = problems("# metrics only\nmetrics: {counters: []}\n")

    assert (2, "tracing", "nothing to trace: this file has only metrics") == (line, key, what)


def test_lines():
    """Every key knows its line, those of a merged mapping the lines they are written in."""
    text = "x: 1\n" + GOOD.replace("struct: ebt_example", "<<: {struct: ebt_example,\n           service: s}")
    with pytest.raises(ConfigProblems):
        load_document(text, source="example.yaml")
    document = load_document(text.removeprefix("x: 1\n"), source="example.yaml")

    assert 6 == document.lines["tracing.spans[0].ringbuf"]
    assert 8 == document.lines["tracing.spans[0].service"]
    assert 12 == document.lines["tracing.spans[0].labels[0].omit"]
    assert "s" == document.config.tracing.spans[0].service


def test_own_keys_win_over_merged_ones():
    """What a mapping says itself counts more than what is merged into it, and is not there twice."""
    text = "tracing:\n  spans:\n    - {<<: {ringbuf: a, name: a}, ringbuf: b, struct: s}\n"
    [span] = load_program_config(text, source="x.yaml").tracing.spans

    assert ("b", "a", "s") == (span.ringbuf, span.name, span.struct)


def test_anchor_within_itself():
    """A mapping merged into itself is read once."""
    text = "tracing:\n  spans:\n    - &a {<<: *a, ringbuf: b, struct: s}\n"

    assert "b" == load_program_config(text, source="x.yaml").tracing.spans[0].ringbuf


def test_empty_values_are_not_given():
    """A key with nothing after it is as good as none."""
    text = GOOD.replace("hook: tp_btf/example", "hook:").replace("type: 3", "type: null")
    [span] = load_program_config(text, source="x.yaml").tracing.spans

    assert ("", None) == (span.hook, span.type)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("type: 3", "type: three", (8, "tracing.spans[0].type", "is the text 'three', not a whole number")),
        ("type: 3", "type: '3'", (8, "tracing.spans[0].type", "is the text '3', not a whole number")),
        ("type: 3", "type: 1e3", (8, "tracing.spans[0].type", "is the text '1e3', not a whole number")),
        ("type: 3", "type: -1", (8, "tracing.spans[0].type", "-1 does not fit 32 bits")),
        ("omit: 0", "colour: red", (11, "tracing.spans[0].labels[0].colour", "unknown key")),
        ("role: span_name", "role: king", (13, "tracing.spans[0].labels[1].role", "'king' is not known")),
        (
            "ebt_example",
            "struct ebt_example",
            (7, "tracing.spans[0].struct", "'struct ebt_example' is more than a name"),
        ),
        ("ringbuf: events", "ringbuf: ''", (6, "tracing.spans[0].ringbuf", "is empty")),
        ("name: pid", "name: ''", (11, "tracing.spans[0].labels[0].name", "is empty")),
        (
            "    - name: example",
            "    - ? [a]\n      : b\n      name: example",
            (5, "tracing.spans[0]", "a key is a list, not text"),
        ),
    ],
)
def test_mistakes(old, new, expected):
    """A mistake is told with its line, its key and what it is."""
    assert [expected] == problems(GOOD.replace(old, new))


def test_all_at_once():
    """All mistakes are told at once, in the order of the file, and each once."""
    text = (
        GOOD.replace("type: 3", "type: three").replace("omit: 0", "omitt: 0").replace("role: span_name", "role: king")
    )

    assert [8, 11, 13] == [line for line, _, _ in problems(text)]


def test_message():
    """The message has a line for each problem, with file, line, key, what is wrong and how to mend it."""
    with pytest.raises(ConfigError) as caught:
        load_program_config(GOOD.replace("type: 3", "tpye: 3").replace("omit: 0", "size: big"), source="example.yaml")

    key, size = str(caught.value).splitlines()

    assert "example.yaml:8: tracing.spans[0].tpye: unknown key: did you mean 'type'?" == key
    assert (
        "example.yaml:11: tracing.spans[0].labels[0].size: is the text 'big', not a whole number: "
        "give the field's size in bytes"
    ) == size


def test_a_misspelt_key_brings_no_other_problems():
    """What a misspelt key holds is read as if it were spelt right, so nothing is missing besides."""
    text = GOOD.replace("ringbuf: events", "ringbuff: events").replace("type: 3", "typ: three")

    assert [
        (6, "tracing.spans[0].ringbuff", "unknown key"),
        (8, "tracing.spans[0].typ", "unknown key"),
        (8, "tracing.spans[0].type", "is the text 'three', not a whole number"),
    ] == problems(text)


@pytest.mark.parametrize("number", ["16", "+16", "0x10", "0o20", "0b10000", "1_6"])
def test_whole_numbers(number):
    """A whole number may be written in any base that YAML has."""
    [span] = load_program_config(GOOD.replace("type: 3", f"type: {number}"), source="x.yaml").tracing.spans

    assert 16 == span.type


def test_problem_without_a_line():
    """A problem of which only the file is known says that much."""
    assert "a.yaml: it is wrong" == str(Problem("a.yaml", 0, "", "it is wrong", ""))


def test_nested_too_deeply():
    """A file that is nested beyond all reason is an error, not a crash."""
    [(_, _, what)] = problems("[" * 5000 + "]" * 5000)

    assert "not YAML: nested too deeply" == what


_KEYS = {key for fields in (SpanConfig, LabelConfig, DecoderConfig, ProgramConfig) for key in fields.__struct_fields__}
_WORDS = st.sampled_from(sorted(_KEYS | {"spans", "uint", "hex", "string", "trace_id", "<<"}))
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), _WORDS)
_DOCUMENTS = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(_WORDS, _SCALARS), inner, max_size=5)
    ),
    max_leaves=30,
)
_SPANS = st.fixed_dictionaries(
    {"tracing": st.fixed_dictionaries({"spans": st.lists(st.dictionaries(_WORDS, _DOCUMENTS, max_size=8), max_size=3)})}
)
_LABELS = st.lists(
    st.dictionaries(
        _WORDS, st.one_of(_SCALARS, st.lists(st.dictionaries(_WORDS, _DOCUMENTS, max_size=3), max_size=3)), max_size=6
    ),
    max_size=4,
)
_SPANS_WITH_LABELS = st.builds(lambda labels: {"tracing": {"spans": [{"ringbuf": "a", "labels": labels}]}}, _LABELS)


def outcome(text):
    """The type of what comes of a file."""
    try:
        return type(load_program_config(text, source="x.yaml"))
    except ConfigError as error:
        return type(error)


@given(st.one_of(_DOCUMENTS, _SPANS, _SPANS_WITH_LABELS))
def test_any_document(document):
    """Whatever a YAML document says, it becomes a config or a ConfigError."""
    assert outcome(yaml.safe_dump(document)) in (ProgramConfig, ConfigProblems)


@given(st.one_of(st.text(max_size=200), st.text(alphabet="{}[]:,&*!|>-? \n\t'\"%@<a0", max_size=60)))
def test_any_text(text):
    """Whatever a file holds, it becomes a config or a ConfigError."""
    assert outcome(text) in (ProgramConfig, ConfigProblems)


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
    with pytest.raises(ConfigError, match=r"no program 'nothing'; there are: .*exec.*sched"):
        find("nothing")


def test_not_built(monkeypatch, tmp_path):
    """A package whose objects were not built says how to build it."""
    import importlib.resources

    from ebpftrace.errors import UnsupportedError

    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(UnsupportedError, match="pip install"):
        find("sched").object_bytes()


def test_reference_page():
    """The examples of the reference page are right."""
    page = (Path(__file__).parents[2] / "docs/reference/config.md").read_text()
    examples = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    whole = [text for text in examples if "tracing:" in text]

    assert 2 == len(whole)
    for text in whole:
        assert () == load_document(text, source="config.md").warnings


@pytest.mark.parametrize("kind", [ProgramConfig, SpanConfig, LabelConfig, CgroupIdMapConfig])
def test_reference_page_has_all_keys(kind):
    """Every key of the format is in a table of the reference page."""
    page = (Path(__file__).parents[2] / "docs/reference/config.md").read_text()

    assert [] == [key for key in kind.__struct_fields__ if f"| `{key}" not in page]


def test_reference_page_has_all_roles():
    """Every role is in the table, with the name that has it by itself."""
    page = (Path(__file__).parents[2] / "docs/reference/config.md").read_text()

    assert [] == [role for name, role in RESERVED.items() if f"| `{role}` | `{name}` |" not in page]
