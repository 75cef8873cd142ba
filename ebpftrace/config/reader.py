# SPDX-License-Identifier: Apache-2.0
"""From YAML nodes to the types of `model`, collecting every problem on the way.

The types tell what is expected (`msgspec.inspect`), so a new key of the format needs no code here. A value that is
wrong is noted and replaced by its default, and reading goes on.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec.inspect as types
import yaml

from ebpftrace.config import nodes
from ebpftrace.config.model import ProgramConfig
from ebpftrace.config.problems import suggest

if TYPE_CHECKING:
    from ebpftrace.config.nodes import Node
    from ebpftrace.config.problems import Problems

_WANTED = "give "
_MENDS = {
    "name": "name it",
    "ringbuf": "name the program's ring buffer map",
    "size": "give the field's size in bytes",
    "padding": "give the bytes to skip after the field",
    "type": "give the record's type, a number",
    "regexps": "give a list of regular expressions",
    "static_map": "give the values and their texts: {0: read, 1: write}",
    "allow_unknown": "give true or false",
    "kaddrs": "give a list of kernel symbols",
}
_KINDS: tuple[tuple[type[types.Type], str], ...] = (
    (types.StrType, "text"),
    (types.IntType, "a whole number"),
    (types.BoolType, "true or false"),
    (types.ListType, "a list"),
    (types.DictType, "a mapping"),
    (types.StructType, "a mapping"),
)


class _WrongError(Exception):
    """A node is not what is expected; carries what would be."""


def read(root: Node | None, problems: Problems, lines: dict[str, int]) -> ProgramConfig:
    """Return what a document says, as far as it can be understood.

    Args:
        root: of the document.
        problems: where to note what is wrong.
        lines: gets the line of each key.
    """
    if root is not None:
        lines[""] = nodes.line(root)
    if not isinstance(root, yaml.MappingNode):
        was = "empty" if root is None else nodes.describe(root)
        problems.add("", f"the file is {was}, not a mapping", "begin with 'tracing:' and its 'spans:'")
        return ProgramConfig()
    config: ProgramConfig = _Reader(problems, lines).structure(root, _expected(), "")
    return config


@functools.cache
def _expected() -> types.StructType:
    expected = types.type_info(ProgramConfig)
    assert isinstance(expected, types.StructType)  # noqa: S101 - for the type checker
    return expected


class _Reader:
    """One pass over the nodes.

    Args:
        problems: where to note what is wrong.
        lines: gets the line of each key.
    """

    def __init__(self, problems: Problems, lines: dict[str, int]) -> None:
        self._problems = problems
        self._lines = lines

    def structure(self, node: yaml.MappingNode, expected: types.StructType, path: str) -> Any:
        fields = {field.name: field for field in expected.fields}
        given = self._given(node, fields, path)
        values: dict[str, Any] = {}
        for name, field in fields.items():
            key = _join(path, name)
            if name in given and not nodes.is_null(given[name]):
                try:
                    values[name] = self.value(given[name], field.type, key)
                    continue
                except _WrongError as error:
                    mend = _MENDS.get(name, f"{_WANTED}{error}")
                    self._problems.add(key, f"is {nodes.describe(given[name])}, not {error}", mend)
            elif field.required:
                self._problems.add(key, "is missing", _MENDS.get(name, f"{_WANTED}{_words(field.type)}"))
            if field.required:
                values[name] = "" if isinstance(field.type, types.StrType) else []
        return expected.cls(**values)

    def _given(self, node: yaml.MappingNode, fields: dict[str, types.Field], path: str) -> dict[str, Node]:
        """The values by key; a misspelt key counts as the one it is like, so that it brings no more problems."""
        given: dict[str, Node] = {}
        unknown: dict[str, Node] = {}
        for key, value in self._keys(node, path):
            (given if key in fields else unknown)[key] = value
        for key, value in unknown.items():
            mend = suggest(key, fields, "the keys here are")
            self._problems.add(_join(path, key), "unknown key", mend)
            meant = mend.removeprefix("did you mean '").removesuffix("'?")
            if meant in fields and meant not in given:
                given[meant] = value
                self._lines[_join(path, meant)] = self._lines[_join(path, key)]
        return given

    def _keys(self, node: yaml.MappingNode, path: str) -> list[tuple[str, Node]]:
        """The keys as text, with their values, each once; their lines are kept."""
        found: dict[str, Node] = {}
        own = {id(key) for key, _ in node.value}
        for key_node, value in nodes.pairs(node):
            key = nodes.text(key_node)
            if key is None:
                what = f"a key is {nodes.describe(key_node)}, not text"
                self._problems.add(path, what, "write names as keys", line=nodes.line(key_node))
                continue
            if key not in found:
                found[key] = value
                self._lines[_join(path, key)] = nodes.line(key_node)
            elif id(key_node) in own:
                first = self._lines[_join(path, key)]
                mend = f"remove one; the first is in line {first}"
                self._problems.add(_join(path, key), "is there twice", mend, line=nodes.line(key_node))
        return list(found.items())

    def value(self, node: Node, expected: types.Type, path: str) -> Any:
        """Return a node's value.

        Raises:
            _WrongError: it is not of that type.
        """
        found: Any = None
        match expected, node:
            case types.UnionType(), _:
                found = self._any_of(node, expected, path)
            case types.LiteralType(), _:
                found = self._literal(node, expected, path)
            case types.AnyType(), _:
                found = True  # that it is there is all one wants to know of it
            case types.StructType(), yaml.MappingNode():
                found = self.structure(node, expected, path)
            case types.DictType(), yaml.MappingNode():
                found = self._mapping(node, expected, path)
            case types.ListType(), yaml.SequenceNode():
                found = self._list(node, expected, path)
            case _:
                found = _scalar(node, expected)
        if found is None:
            raise _WrongError(_words(expected))
        return found

    def _any_of(self, node: Node, expected: types.UnionType, path: str) -> Any:
        choices = [each for each in expected.types if not isinstance(each, types.NoneType)]
        # true and 5 are text too, so text is the last to be tried; and of a struct the problems are its own
        for choice in sorted(choices, key=lambda each: isinstance(each, types.StrType)):
            try:
                return self.value(node, choice, path)
            except _WrongError:
                continue
        raise _WrongError(_words(expected))

    def _literal(self, node: Node, expected: types.LiteralType, path: str) -> Any:
        found = nodes.text(node)
        if found is None:
            raise _WrongError("text")
        if found not in expected.values:
            names = [str(value) for value in expected.values if value]
            self._problems.add(path, f"{found!r} is not known", suggest(found, names, "there are"))
            return ""
        return found

    def _list(self, node: yaml.SequenceNode, expected: types.ListType, path: str) -> list[Any]:
        found = []
        for index, item in enumerate(node.value):
            key = f"{path}[{index}]"
            self._lines[key] = nodes.line(item)
            try:
                found.append(self.value(item, expected.item_type, key))
            except _WrongError as error:
                self._problems.add(key, f"is {nodes.describe(item)}, not {error}", f"{_WANTED}{error}")
                if isinstance(expected.item_type, types.StructType):  # so that the others keep their places
                    found.append(self.structure(yaml.MappingNode("", [], item.start_mark), expected.item_type, key))
        return found

    def _mapping(self, node: yaml.MappingNode, expected: types.DictType, path: str) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        numbers = isinstance(expected.key_type, types.UnionType)
        integers = {nodes.text(key): nodes.integer(key) for key, _ in nodes.pairs(node)} if numbers else {}
        for name, item in self._keys(node, path):
            number = integers.get(name)
            key = name if number is None else number
            if key in found:
                self._problems.add(_join(path, name), f"{key} is there twice", "remove one")
                continue
            try:
                found[key] = self.value(item, expected.value_type, _join(path, name))
            except _WrongError as error:
                what = f"is {nodes.describe(item)}, not {error}"
                self._problems.add(_join(path, name), what, f"{_WANTED}{error}")
        return found


def _scalar(node: Node, expected: types.Type) -> str | int | bool | None:
    if isinstance(expected, types.StrType):
        return nodes.text(node)
    if isinstance(expected, types.IntType):
        return nodes.integer(node)
    return nodes.boolean(node) if isinstance(expected, types.BoolType) else None


def _words(expected: types.Type) -> str:
    """What is expected, in words."""
    if isinstance(expected, types.UnionType):
        words = [_words(each) for each in expected.types if not isinstance(each, types.NoneType)]
        return " or ".join(words)
    if isinstance(expected, types.ListType) and isinstance(expected.item_type, types.StrType):
        return "a list of texts"
    return next((words for kind, words in _KINDS if isinstance(expected, kind)), "text")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
