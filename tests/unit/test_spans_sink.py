# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

from spans_support import kernel_span

from ebpftrace.spans.sink import NullSink, SinkStats


def test_null_sink_counts_what_it_drops():
    """Spans without a backend are dropped, and the stats say so."""
    sink = NullSink("nobody listens")

    sink.emit([kernel_span(1), kernel_span(2)])
    sink.close()
    sink.emit([kernel_span(3)])

    assert sink.stats == SinkStats(emitted=3, dropped=3)
    assert sink.flush(0.0)


def test_importing_the_package_leaves_the_sdk_alone():
    """A process that only decodes does not pay for the OpenTelemetry SDK."""
    code = "import sys, ebpftrace.spans; print(any(name.startswith('opentelemetry') for name in sys.modules))"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout == "False\n"
