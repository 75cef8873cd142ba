# SPDX-License-Identifier: Apache-2.0
# The reference of the C extension; the docstrings are in the source.
from collections.abc import Callable, Sequence
from typing import TypeAlias

from typing_extensions import Buffer

SKIPPED: int
FAILED: int

# role, op, offset, size, prefix, omit, number of a shared key or -1, lasting, convert
Column: TypeAlias = tuple[str, str, int, int, bytes, bytes, int, bool, Callable[[bytes], bytes | int | None] | None]
# type, type offset, size, program, name, service, kind, attributes, attributes of shared keys, columns
Layout: TypeAlias = tuple[
    int | None, int, int, str, bytes, bytes, int, bytes, tuple[tuple[int, bytes], ...], tuple[Column, ...]
]

class Encoder:
    pending: int
    stray: int
    def __init__(self, chunk_bytes: int = 1048576) -> None: ...
    def feed(self, data: Buffer, offset_ns: int, /) -> None: ...
    def take(self) -> list[tuple[str, str, bytes, int]]: ...
    def set_ring(self, number: int, layouts: Sequence[Layout] | None, /) -> None: ...
    def counts(self, number: int, /) -> dict[str, int]: ...
