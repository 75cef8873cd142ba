# SPDX-License-Identifier: Apache-2.0
"""The agent's traces of itself: what loading took, what failed and why; and what stopping took.

They go the way that kernel spans go, so a start-up that failed is found where everything else is looked for. libbpf
relocates and has the kernel verify an object in one call, which is therefore one span ("load").
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING

from ebpftrace.errors import BpfError
from ebpftrace.spans.model import KernelSpan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ebpftrace.spans.model import AttributeValue

SERVICE = "ebpftrace-agent"
_SCOPE = "agent"
_LOG_CHARS = 8192  # of libbpf's log: the verifier's last words are at its end

_random = random.SystemRandom()


class Step:
    """A span in the making: one thing that the agent does.

    Args:
        name: of the span.
        trace_id: that it belongs to.
        parent_span_id: 0 for the root.
        attributes: known at its start.
    """

    def __init__(self, name: str, trace_id: int, parent_span_id: int, attributes: dict[str, AttributeValue]) -> None:
        self._name = name
        self._trace_id = trace_id
        self._parent = parent_span_id
        self._id = _random.randrange(1, 1 << 64)
        self._start_ns = time.time_ns()
        self._events: list[tuple[str, int]] = []
        self.attributes = attributes
        self._error: str | None = None

    def event(self, name: str) -> None:
        """Something happened just now."""
        self._events.append((name, time.time_ns()))

    def failed(self, error: BaseException) -> None:
        """It did not work out; with libbpf's own words, where there are some."""
        self._error = self._error or str(error)
        self.attributes["exception.type"] = type(error).__qualname__
        self.attributes["exception.message"] = str(error)
        if isinstance(error, BpfError) and error.log:
            self.attributes["ebpftrace.agent.libbpf.log"] = error.log[-_LOG_CHARS:]

    def end(self) -> KernelSpan:
        """Return the span, which ends now."""
        return KernelSpan(
            self._trace_id, self._id, self._parent, self._name, self._start_ns, time.time_ns(), self.attributes, _SCOPE,
            error=self._error, service=SERVICE, events=tuple(self._events),
        )  # fmt: skip


class SelfTrace:
    """One trace of the agent.

    Steps nest by the `with` statement. Those that have ended are in `spans`.

    Args:
        name: of the root span, which lasts until `end()`.
        attributes: of the root span.
    """

    def __init__(self, name: str, **attributes: AttributeValue) -> None:
        self._trace_id = _random.randrange(1, 1 << 128)
        self.root = Step(name, self._trace_id, 0, dict(attributes))
        self._open = [self.root]
        self.spans: list[KernelSpan] = []

    @contextlib.contextmanager
    def step(self, name: str, **attributes: AttributeValue) -> Iterator[Step]:
        """A span below the innermost one that is open; an exception makes its status an error, and goes on."""
        step = Step(name, self._trace_id, self._open[-1]._id, dict(attributes))
        self._open.append(step)
        try:
            yield step
        except BaseException as error:
            step.failed(error)
            raise
        finally:
            self._open.remove(step)
            self.spans.append(step.end())

    def end(self) -> list[KernelSpan]:
        """End the root span; return the whole trace."""
        self.spans.append(self.root.end())
        return self.spans
