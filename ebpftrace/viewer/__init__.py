# SPDX-License-Identifier: Apache-2.0
r"""Reading traces back: the terminal waterfall, the verdict in words, and the checker.

document = load("trace.jsonl")
for trace in build_traces(document.spans):
    print("\n".join(render(trace)))
"""

from __future__ import annotations

from ebpftrace.viewer.otlp import Document, TraceFileError, load, parse
from ebpftrace.viewer.theme import Theme, choose_theme
from ebpftrace.viewer.trace import Span, Trace, build_traces
from ebpftrace.viewer.verdict import verdict
from ebpftrace.viewer.waterfall import Options, render, render_list

__all__ = [
    "Document",
    "Options",
    "Span",
    "Theme",
    "Trace",
    "TraceFileError",
    "build_traces",
    "choose_theme",
    "load",
    "parse",
    "render",
    "render_list",
    "verdict",
]
