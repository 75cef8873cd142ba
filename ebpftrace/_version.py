# SPDX-License-Identifier: Apache-2.0
"""The installed distribution's version, for scopes and `--version`."""

from __future__ import annotations

from importlib import metadata

try:
    version = metadata.version("ebpftrace")
except metadata.PackageNotFoundError:  # a source tree on sys.path that nobody installed
    version = "0+unknown"
