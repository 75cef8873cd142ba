# SPDX-License-Identifier: Apache-2.0
"""Chains: the decoders of one label put together and checked before the first record comes."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ebpftrace.decoders.catalog import ENTRIES
from ebpftrace.decoders.text import plain, string
from ebpftrace.decoders.values import BYTE_ORDER, Decoder, Entry, Native, Place, Type, unsigned
from ebpftrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ebpftrace.config.layout import FieldKind
    from ebpftrace.config.model import DecoderConfig

_TYPES: Mapping[FieldKind, Type] = {
    "raw": "bytes",
    "char": "bytes",
    "unsigned": "int",
    "signed": "int",
    "bool": "bool",
    "float": "float",
}
_NATIVES: Mapping[FieldKind, Native] = {
    "raw": "hex",
    "char": "cstring",
    "unsigned": "uint",
    "signed": "sint",
    "bool": "bool",
    "float": "float",
}
_NUMBER_SIZES = (1, 2, 4, 8)
_KEYS = ("static_map", "allow_unknown", "regexps")
_WORDS: Mapping[Type, str] = {
    "bytes": "the field's bytes",
    "int": "a number",
    "float": "a floating-point number",
    "bool": "true or false",
    "text": "text",
    "texts": "a list of texts",
}


@dataclass(frozen=True, slots=True)
class Chain:
    """The decoders of one label, as one function.

    Args:
        run: the value of the field → the value of the attribute, or None for no attribute. `SkipRecord` = no span. It
            takes bytes for fields of kind "raw" and "char", else a number. Safe from any thread.
        lasting: the answer for a value stays the same; else keep it for about a second.
        gives: the type of the attribute's value; never "bytes".
        native: what C may do instead of calling `run`: "uint" and "sint" read the field as a number, "bool" its one
            byte, "float" its four or eight, "cstring" is text up to the first NUL with invalid UTF-8 replaced
            (none when empty), "hex" the bytes in the order of memory. "" = call `run`.
        capabilities: that the decoders need to answer at all.
        reads: files and directories that they look things up in.
        preparations: what `prepare` does.
    """

    run: Decoder
    lasting: bool
    gives: Type
    native: Native = ""
    capabilities: frozenset[str] = frozenset()
    reads: tuple[str, ...] = ()
    preparations: frozenset[Callable[[], None]] = frozenset()

    def prepare(self) -> None:
        """Read what can only be read before capabilities are dropped (kernel symbols); may take 0.2 s once."""
        for preparation in self.preparations:
            preparation()


def chain(
    kind: FieldKind, size: int, decoders: Sequence[DecoderConfig], names: Mapping[int, str] | None = None
) -> Chain:
    """Put decoders together.

    A field without decoders becomes what it is: a number, text for "char", the name of an enum's value, hex digits for
    other bytes.

    Args:
        kind: how the field's bytes are read.
        size: of the field, in bytes.
        decoders: as the program's file has them, in order.
        names: of an enum's values.

    Raises:
        ConfigError: they do not fit the field, or each other; says everything that is wrong, a line each.
    """
    if not decoders and names is not None and size in _NUMBER_SIZES and kind in ("unsigned", "signed", "raw"):
        decoders = _implied_enum()
    builder = _Builder(kind, size, names)
    for position, config in enumerate(decoders):
        builder.add(position, config)
    if builder.problems:
        raise ConfigError("\n".join(builder.problems))
    return builder.finish()


def _implied_enum() -> Sequence[DecoderConfig]:
    from ebpftrace.config.model import DecoderConfig

    return (DecoderConfig("enum"),)


class _Builder:
    """A chain in the making."""

    def __init__(self, kind: FieldKind, size: int, names: Mapping[int, str] | None) -> None:
        self.problems: list[str] = []
        self._kind, self._size, self._names = kind, size, names
        self._type: Type | None = _TYPES[kind]  # None: unknown, after a problem
        self._at_start = True
        self._native: Native = _NATIVES[kind]
        self._steps: list[Decoder] = []
        self._entries: list[Entry] = []

    def add(self, position: int, config: DecoderConfig) -> None:
        """One more decoder; what is wrong with it goes into `problems`."""
        where = f"decoder {position + 1}, {config.name!r}"
        entry = ENTRIES.get(config.name)
        if entry is None:
            self.problems.append(f"{where}: there is no such decoder{_nearest(config.name)}")
            self._type, self._at_start = None, False
            return
        problems = self._key_problems(entry, config)
        if entry.name == "enum" and self._names is None:
            problems.append("the field is no enum in the object's BTF: use `static_map`, or name the record's `struct`")
        before = self._convert(entry, problems)
        if not problems:
            try:
                self._append(entry, before, Place(config, self._kind, self._size, self._names))
            except ConfigError as error:
                problems.append(str(error))
        self.problems += [f"{where}: {problem}" for problem in problems]
        self._type, self._at_start = entry.gives, False
        self._entries.append(entry)

    def _append(self, entry: Entry, before: list[Decoder], place: Place) -> None:
        native = self._native_of(entry)
        if self._at_start and native and native == _NATIVES[self._kind] and self._type != "bytes":
            return  # `uint` of a number that BTF says is unsigned, and the like: nothing to do
        self._native = "" if self._steps or self._entries else native
        if self._steps and self._steps[-1] is string:
            self._steps[-1] = plain  # empty text goes on to the next decoder: a filter has to see it
        self._steps += [*before, entry.build(place)]

    def _native_of(self, entry: Entry) -> Native:
        """What a chain of this decoder alone is for C."""
        if entry.native == "bool" and self._size != 1:
            return ""
        if self._kind in ("bool", "float"):  # a bool in memory may be any byte, but is read as 0 or 1
            return entry.native if entry.native == self._kind else ""
        return entry.native if self._type == "bytes" or entry.packs else ""

    def _convert(self, entry: Entry, problems: list[str]) -> list[Decoder]:
        """What has to happen to the value before `entry` can take it."""
        kind = self._type
        if kind is None:
            return []
        text = kind == "bytes" and self._kind == "char"
        if kind == "bytes" and "bytes" in entry.takes and not (text and (entry.number or entry.name == "regexp")):
            self._check_size(entry, problems)
            return [unsigned] if entry.number else []
        if text and "text" in entry.takes:
            return [plain]  # for a regexp too: its `$` is where the text ends, not the field
        if self._at_start and entry.packs and kind in ("int", "bool"):
            self._check_size(entry, problems)
            return [self._pack]
        if kind != "bytes" and (kind in entry.takes or (kind == "bool" and "int" in entry.takes)):
            return []
        problems.append(self._mismatch(entry, kind))
        return []

    def _pack(self, value: int) -> bytes:
        return int(value).to_bytes(self._size, BYTE_ORDER, signed=self._kind == "signed")

    def _check_size(self, entry: Entry, problems: list[str]) -> None:
        if entry.sizes and self._size not in entry.sizes:
            sizes = [str(size) for size in entry.sizes]
            wanted = " or ".join(part for part in (", ".join(sizes[:-1]), sizes[-1]) if part)
            problems.append(f"takes a field of {wanted} bytes, not of {self._size}: correct the label's size")
        elif self._size < max(entry.least, entry.multiple) or self._size % entry.multiple:
            wanted = f"a multiple of {entry.multiple}" if entry.multiple > 1 else f"at least {entry.least}"
            problems.append(f"takes a field of {wanted} bytes, not of {self._size}: correct the label's size")

    def _mismatch(self, entry: Entry, kind: Type) -> str:
        wanted = " or ".join(_WORDS[taken] for taken in entry.takes)
        if kind != "bytes":
            mend = "put it first" if entry.takes == ("bytes",) and not self._at_start else "take it out"
            return f"takes {wanted}, but gets {_WORDS[kind]}: {mend}"
        if self._kind == "char":
            return f"takes {wanted}, but the field is text: take it out"
        first = "uint" if "int" in entry.takes and self._size in _NUMBER_SIZES else "string"
        return f"takes {wanted}, but gets {_WORDS[kind]}: put `{first}` before it"

    @staticmethod
    def _key_problems(entry: Entry, config: DecoderConfig) -> list[str]:
        problems = [
            f"does not take {key!r}: take it out, or use the right decoder"
            for key in _KEYS
            if getattr(config, key) and key not in entry.keys
        ]
        if entry.keys and not getattr(config, entry.keys[0]):
            problems.append(f"needs {entry.keys[0]!r}, which is missing or empty")
        return problems

    def finish(self) -> Chain:
        """The chain; there were no problems."""
        gives, steps, native = cast("Type", self._type), tuple(self._steps), self._native
        if gives == "bytes":
            gives = "text"
            steps = (string if self._kind == "char" else bytes.hex,)
        return Chain(
            _compose(steps),
            all(entry.lasting for entry in self._entries),
            gives,
            native,
            frozenset(entry.capability for entry in self._entries if entry.capability),
            tuple(dict.fromkeys(path for entry in self._entries for path in entry.reads)),
            frozenset(entry.prepare for entry in self._entries if entry.prepare is not None),
        )


def _same(value: Any) -> Any:
    return value


def _compose(steps: tuple[Decoder, ...]) -> Decoder:
    if len(steps) <= 1:
        return steps[0] if steps else _same

    def run(value: Any) -> Any:
        for step in steps:
            value = step(value)
            if value is None:
                return None
        return value

    return run


def _nearest(name: str) -> str:
    """A hint at what was meant."""
    near = difflib.get_close_matches(name.lower(), ENTRIES, n=1)
    return f": did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(ENTRIES))}"
