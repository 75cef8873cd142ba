# SPDX-License-Identifier: Apache-2.0
"""Reading a program's YAML file."""

from __future__ import annotations

import msgspec
import yaml

from ebpftrace.config.model import ProgramConfig
from ebpftrace.errors import ConfigError


def load_program_config(text: str, *, source: str) -> ProgramConfig:
    """Return what the YAML `text` says.

    Args:
        text: the file's content.
        source: the file's name, for error messages.

    Raises:
        ConfigError: not YAML, or not of the format; says where.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {error}") from error
    try:
        config = msgspec.convert(document, ProgramConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error
    for span in config.tracing.spans:
        for label in span.labels:
            if bool(label.attribute) == bool(label.role):
                raise ConfigError(
                    f"{source}: span {span.name!r}, label {label.name!r}: give it either an attribute or a role"
                )
    return config
