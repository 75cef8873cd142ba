# SPDX-License-Identifier: Apache-2.0
"""Imported by Python at start-up when `ebpftrace run` put this directory first on PYTHONPATH.

Starts ebpftrace, then lets the sitecustomize run that this one hides.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def _run_hidden() -> None:
    here = str(Path(__file__).parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]
    spec = PathFinder.find_spec("sitecustomize")
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _start() -> None:
    try:
        from ebpftrace.runtime import autostart
    except ImportError as error:  # another Python than the one that ebpftrace is installed for
        print(f"ebpftrace: not tracing {sys.executable}: {error}", file=sys.stderr)
    else:
        autostart.install()


_start()
_run_hidden()
