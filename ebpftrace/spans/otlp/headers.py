# SPDX-License-Identifier: Apache-2.0
"""OTEL_EXPORTER_OTLP_HEADERS: `name=value,name=value`, the values percent-encoded."""

from __future__ import annotations

import re
from urllib.parse import unquote

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_OURS = {"content-type", "content-encoding", "content-length", "transfer-encoding"}


def parse_headers(text: str) -> tuple[tuple[str, str], ...]:
    """Split the variable's text into headers, names in lower case; of a name given twice the last one holds.

    Raises:
        ValueError: what is wrong with which entry. It names entries by number and header, never by value: those are
            often credentials.
    """
    headers: dict[str, str] = {}
    for number, entry in enumerate(text.split(","), 1):
        if not entry.strip():
            continue
        name, equals, value = entry.partition("=")
        name = name.strip().lower()
        if not equals:
            raise ValueError(f"entry {number} has no '='; write name=value, and a comma in a value as %2C")
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"entry {number} has a name that no header can have; write name=value,name=value")
        if name in _OURS:
            raise ValueError(f"{name} is the exporter's to set; leave it out")
        headers[name] = _decoded(name, value.strip())
    return tuple(headers.items())


def _decoded(name: str, value: str) -> str:
    try:
        value = unquote(value, errors="strict").strip()
    except UnicodeDecodeError:
        raise ValueError(f"the value of {name} is not UTF-8 after percent-decoding") from None
    if _CONTROL.search(value):
        raise ValueError(f"the value of {name} has a control character (a line break?); headers cannot carry it")
    return value
