# SPDX-License-Identifier: Apache-2.0
"""Decoders: from a record's field to an attribute's value.

A decoder is a function of one value. None means "nothing to say": the attribute is left out. No bytes make a decoder
fail: what it does not know, it says in its text ("unknown:7").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebpftrace.decoders.catalog import ENTRIES, catalogue
from ebpftrace.decoders.chains import Chain, chain
from ebpftrace.decoders.values import Decoder, Entry, Place, SkipRecord
from ebpftrace.errors import ConfigError

if TYPE_CHECKING:
    from ebpftrace.config.model import DecoderConfig

__all__ = ["Chain", "Decoder", "Entry", "SkipRecord", "catalogue", "chain", "make_decoder"]


def make_decoder(config: DecoderConfig) -> Decoder:
    """Return the decoder that a program's file asks for, for a value of the type it takes.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        entry = ENTRIES[config.name]
    except KeyError:
        raise ConfigError(f"there is no decoder {config.name!r}; there are {', '.join(sorted(ENTRIES))}") from None
    return entry.build(Place(config))
