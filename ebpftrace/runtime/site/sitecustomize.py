# SPDX-License-Identifier: Apache-2.0
"""Imported by Python at start-up when `ebpftrace run` put this directory first on PYTHONPATH.

Starts ebpftrace, then lets the sitecustomize run that this one hides. Any Python that the program starts reads this,
so it is written in what all of them understand.
"""

import os
import sys


def _start():
    try:
        from ebpftrace.runtime import autostart
    except (ImportError, SyntaxError) as error:  # another Python than the one that ebpftrace is installed for
        sys.stderr.write("ebpftrace: not tracing %s: %s\n" % (sys.executable, error))
    else:
        autostart.install()


def _run_hidden():
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if entry != here]
    ours = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize  # noqa: F401  (another one, now that ours is out of the way)
    except ImportError as error:
        if getattr(error, "name", "sitecustomize") != "sitecustomize":
            raise
        sys.modules["sitecustomize"] = ours


_start()
_run_hidden()
