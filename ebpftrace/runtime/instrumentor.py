# SPDX-License-Identifier: Apache-2.0
"""The instrumentor by which `opentelemetry-instrument` starts the library, as it does any other instrumentation.

Needs opentelemetry-instrumentation, which is what looks for the entry point; nothing else imports this module.
"""

from __future__ import annotations

import logging
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

import ebpftrace
from ebpftrace.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Collection

logger = logging.getLogger("ebpftrace.runtime")

_SETTINGS = frozenset(field.name for field in fields(Settings))


class EbpftraceInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # a package that need not be installed
    """`instrument()` is `ebpftrace.start()`, `uninstrument()` is `ebpftrace.stop()`.

    Not loaded when OTEL_PYTHON_DISABLED_INSTRUMENTATIONS has `ebpftrace`; does nothing when EBPFTRACE_DISABLED or
    OTEL_SDK_DISABLED is true. Where the library runs already, by `ebpftrace run` or a call, that stays as it is.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Nothing: what is instrumented is the process itself."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            logger.info("kernel tracing is off: OTEL_SDK_DISABLED is true, there are no spans to trace for")
            return
        # other arguments, such as tracer_provider, are for instrumentations that make spans of their own
        ebpftrace.start(**{name: value for name, value in kwargs.items() if name in _SETTINGS})

    def _uninstrument(self, **_kwargs: Any) -> None:
        ebpftrace.stop()
