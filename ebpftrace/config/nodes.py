# SPDX-License-Identifier: Apache-2.0
"""YAML as nodes with lines, before it is values.

Values are made by the type that is expected, not by YAML's own guess: a name may be written `on` or `123` without
quotes and stays text, as in ebpf_exporter.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import yaml

from ebpftrace.config.problems import ConfigProblems, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]*[0-9a-fA-F]|0o[0-7_]*[0-7]|0b[01_]*[01])")
_MOST_DIGITS = 40
_TRUE = ("true", "yes", "on")

Node = yaml.Node


def compose(text: str, source: str) -> Node | None:
    """Return the document's root; None when there is nothing in it.

    Raises:
        ConfigProblems: not YAML, or more than one document.
    """
    try:
        return yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        raise _not_yaml(source, what, mark.line + 1 if mark else 0) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: PyYAML on an escape beyond Unicode
        raise _not_yaml(source, " ".join(str(error).split()), 0) from error
    except RecursionError:
        raise _not_yaml(source, "nested too deeply", 0) from None


def _not_yaml(source: str, what: str, line: int) -> ConfigProblems:
    mend = "look at the indentation, the brackets and the quotes there"
    return ConfigProblems([Problem(source, line, "", f"not YAML: {what}", mend)])


def line(node: Node) -> int:
    """Return the line that a node starts in, from 1."""
    return int(node.start_mark.line) + 1


def is_null(node: Node | None) -> bool:
    """Was nothing written, or `null`?"""
    return node is None or (isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "null")


def text(node: Node) -> str | None:
    """Return a scalar as it was written; None when it is none."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) and not is_null(node) else None


def integer(node: Node) -> int | None:
    """Return the whole number that was written without quotes; None when it is none."""
    if not isinstance(node, yaml.ScalarNode) or node.style is not None or len(node.value) > _MOST_DIGITS:
        return None
    return int(node.value, 0) if _INTEGER.fullmatch(node.value) else None


def boolean(node: Node) -> bool | None:
    """Return the truth value that was written without quotes; None when it is none."""
    if not isinstance(node, yaml.ScalarNode) or node.tag != _TAG + "bool":
        return None
    return str(node.value).lower() in _TRUE


def describe(node: Node) -> str:
    """Return what a node is, in words."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if is_null(node):
        return "empty"
    if boolean(node) is not None:
        return f"the truth value {node.value}"
    if integer(node) is not None:
        return f"the number {node.value}"
    return f"the text {str(node.value)[:40]!r}"


def pairs(node: yaml.MappingNode) -> Iterator[tuple[Node, Node]]:
    """Yield a mapping's keys and values; those merged in (`<<: *other`) come last, for they count least."""
    yield from _pairs(node, (id(node),))


def _pairs(node: yaml.MappingNode, around: tuple[int, ...]) -> Iterator[tuple[Node, Node]]:
    merged: list[Node] = []
    for key, value in node.value:
        if key.tag == _TAG + "merge":
            merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
        else:
            yield key, value
    for other in merged:
        # an alias may name the mapping that it stands in
        if isinstance(other, yaml.MappingNode) and id(other) not in around:
            yield from _pairs(other, (*around, id(other)))
