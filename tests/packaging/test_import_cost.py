# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

# An application has the API loaded already; the SDK and all that reads, decodes or exports it may never need.
MEASURE = """
import json, sys, time
import opentelemetry.trace
before = time.perf_counter()
import ebpftrace
seconds = time.perf_counter() - before
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
"""
NOT_WANTED = {"_cffi_backend", "asyncio", "cffi", "msgspec", "opentelemetry.sdk", "yaml"}


def test_modules(installed):
    """Importing the package loads none of what an application may never use."""
    loaded = json.loads(installed("-c", MEASURE))["modules"]

    assert "ebpftrace" in loaded
    assert set() == NOT_WANTED.intersection(loaded)


def test_time(installed):
    """Importing the package adds less than 50 ms to importing OpenTelemetry's API."""
    installed("-c", MEASURE)  # writes the byte code
    best = min(json.loads(installed("-c", MEASURE))["seconds"] for _ in range(5))

    assert best < 0.050
