# SPDX-License-Identifier: Apache-2.0
"""One program several times over, each time with other hooks, so that they can be compared on the same traffic."""

from __future__ import annotations

from contextlib import ExitStack


class Variant:
    """A program without an application: its records become spans as in the agent.

    Args:
        name: of the program.
        extras: with those functions that only some kernels take.
        hidden: tracepoints that the kernel is taken not to have, so that what stands in for them is loaded.
        knobs: set before loading.
    """

    def __init__(self, name, *, extras=True, hidden=(), **knobs):
        from ebpftrace.config.resolve import resolve
        from ebpftrace.kernel.btf import Btf
        from ebpftrace.kernel.object import BpfObject
        from ebpftrace.kernel.ringbuf import RingReader
        from ebpftrace.programs import find
        from ebpftrace.programs.choose import choose_functions, kernel_knobs
        from ebpftrace.programs.knobs import set_numbers
        from ebpftrace.spans.plan import RingPlan

        program, kernel = find(name), Btf.kernel()
        with ExitStack() as opening:
            self.object = opening.enter_context(BpfObject(name, program.object_bytes()))
            self.plan = RingPlan(resolve(name, f"{program.stem}.yaml", program.config(), self.object))
            choose_functions(self.object, _Hiding(kernel, hidden), extras=extras)
            set_numbers(self.object, {**kernel_knobs(kernel), **knobs}, known_only=True)
            self.object.load()
            self._reader = opening.enter_context(RingReader())
            self._reader.add(self.object.map("events"), 0)
            self.object.attach()
            self._open = opening.pop_all()

    def hooks(self):
        """What it is attached to."""
        return sorted(function.section for function in self.object.attachable())

    def spans(self):
        """What it has seen since it was asked last."""
        from ebpftrace.spans.clock import Clock

        found, clock = [], Clock()
        while True:
            batch = self._reader.wait(interval_ms=10, timeout_ms=300)
            if not batch.records:
                assert not any(self.plan.counts.undecoded.values())
                return found
            found += self.plan.decode(batch.data, [(offset, size) for _, offset, size in batch], clock)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._open.close()


class _Hiding:
    """A kernel's types, less some tracepoints."""

    def __init__(self, kernel, hidden):
        self._kernel, self._hidden = kernel, hidden

    def has_tracepoint(self, name):
        """Is it there, and not hidden?"""
        return name not in self._hidden and self._kernel.has_tracepoint(name)


def why_no_fentry():
    """Why this kernel takes no functions at the entry or exit of its own; "" when it does."""
    from ebpftrace.kernel.btf import Btf
    from ebpftrace.kernel.object import Program
    from ebpftrace.programs.choose import why_not

    return why_not(Program("inet_release", "fentry/inet_release", optional=True), Btf.kernel())
