# SPDX-License-Identifier: Apache-2.0
"""Decoders: from a record's field to an attribute's value.

A decoder is a function of one value. None means "nothing to say": the attribute is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ebpftrace.decoders import process, sched, text
from ebpftrace.errors import ConfigError

if TYPE_CHECKING:
    from ebpftrace.config.model import DecoderConfig

Decoder = Callable[[Any], Any]

_SIMPLE: Mapping[str, Decoder] = {
    "argv": process.argv,
    "bool": bool,
    "exit_code": process.exit_code,
    "exit_error": process.exit_error,
    "exec_name": process.exec_name,
    "string": text.string,
    "syscall": sched.syscall,
    "task_state": sched.task_state,
}


def make_decoder(config: DecoderConfig) -> Decoder:
    """Return the decoder that a program's file asks for.

    Raises:
        ConfigError: there is none of that name.
    """
    if config.name == "static_map":
        return text.static_map(config.static_map)
    try:
        return _SIMPLE[config.name]
    except KeyError:
        known = ", ".join(sorted([*_SIMPLE, "static_map"]))
        raise ConfigError(f"there is no decoder {config.name!r}; there are {known}") from None
