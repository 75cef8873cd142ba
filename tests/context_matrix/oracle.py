# SPDX-License-Identifier: Apache-2.0
"""The judge of the context matrix: what BPF saw at a check, against the span that OpenTelemetry says is current there.

A check makes a system call that a BPF program of ours watches for, and only then asks OpenTelemetry, so that asking
cannot mend what the kernel was going to see. Nothing is read back until the end: a check switches no task.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

MARK = 0x5A000000
CHECKS = 1 << 16
_SIGHTING = struct.Struct("=16s8sIBBBx")
_PROGRAM = "exec"
_EXAMPLES = 5

OUTCOMES = ("right", "unknown", "wrong", "spurious", "lost")
"""Of a check: the right span or rightly none; none though there is one; another span; a span where there is none; the
kernel did not report the system call, or more than one of that number."""


class NotRun(Exception):  # noqa: N818  (no error: a fact about this machine)
    """A scenario cannot run here; the text says why."""


def compile_program(folder):
    """Compile the BPF program into a folder; return its path."""
    target = Path(folder) / "oracle.bpf.o"
    command = [Path(sys.executable).with_name("ebpftrace"), "build", Path(__file__).with_name("oracle.bpf.c")]
    subprocess.run([*command, "-o", target, "--werror"], check=True, capture_output=True)
    return target


class Oracle:
    """Watches the checks of this process.

    Args:
        session: of `ebpftrace.start()`, active.
        program: the compiled BPF program.
    """

    def __init__(self, session, program):
        from ebpftrace.kernel.object import BpfObject

        kernel = session._kernel
        self.pid = os.getpid()
        self._numbers = itertools.count()
        self._truths = []
        self._added = Counter()
        self._examples = []
        self._object = BpfObject("oracle", Path(program).read_bytes())
        self._object.set_rodata("ebt_program_bit", kernel.bits()[_PROGRAM])
        self._object.set_rodata("filter_tgid", kernel.tgid)
        kernel._core.lend(self._object)
        self._object.load()
        self._object.attach()
        self._map = self._object.map("sightings")

    def check(self, where):
        """Make one check.

        Args:
            where: for people.
        """
        number = next(self._numbers)
        if number >= CHECKS:
            raise RuntimeError(f"a process makes {CHECKS} checks at most")
        with contextlib.suppress(ProcessLookupError):
            os.getpgid(MARK + number)
        self._truths.append((number, current(), where))

    def add(self, verdict):
        """Take in the verdict of another process."""
        self._added.update({name: verdict[name] for name in OUTCOMES})
        self._examples += verdict["examples"]

    def verdict(self):
        """The outcomes since the last verdict, and examples of those that are not right."""
        truths, self._truths = self._truths, []
        counts, self._added = self._added, Counter()
        examples, self._examples = self._examples, []
        for number, truth, where in truths:
            outcome, seen = self._judge(number, truth)
            counts[outcome] += 1
            if outcome != "right" and sum(each["outcome"] == outcome for each in examples) < _EXAMPLES:
                examples.append({"outcome": outcome, "where": where, "truth": _text(truth), "seen": _text(seen)})
        return {**{name: counts[name] for name in OUTCOMES}, "checks": counts.total(), "examples": examples}

    def _judge(self, number, truth):
        found = _SIGHTING.unpack(self._map.lookup(struct.pack("=I", number)))
        trace_id, span_id, made, _slot, _valid, seen = found
        ids = (trace_id, span_id) if seen else None
        if made != 1:
            return "lost", ids
        return judge(truth, ids), ids

    def close(self):
        """Unload the program."""
        self._object.close()


def judge(truth, seen):
    """Compare what is current with what BPF saw, both (trace id, span id) or None."""
    if truth == seen:
        return "right"
    if seen is None:
        return "unknown"
    return "spurious" if truth is None else "wrong"


def _text(ids):
    return ids[1].hex() if ids else "none"


def current():
    """The ids of the span that OpenTelemetry says is current, or None; programs act in sampled spans only."""
    from opentelemetry import trace

    found = trace.get_current_span().get_span_context()
    if not (found.is_valid and found.trace_flags.sampled):
        return None
    return found.trace_id.to_bytes(16, "big"), found.span_id.to_bytes(8, "big")


# --- the one of this process, for scenarios

_oracle = None


def start(**settings):
    """Start the library and the oracle in this process, or again in a forked one.

    Raises:
        NotRun: the library does not trace here.
    """
    import ebpftrace

    return watch(ebpftrace.start(programs=(_PROGRAM,), enable=(_PROGRAM,), breakdown=False, **settings))


def watch(session):
    """Start the oracle for a session."""
    global _oracle  # noqa: PLW0603
    if not session.active:
        raise NotRun(session.reason)
    tracer()  # now: a signal handler that makes it in the middle of that waits for ever
    _oracle = Oracle(session, os.environ["CONTEXT_MATRIX_ORACLE"])
    return _oracle


def watch_restarted(timeout_s=20.0):
    """In a forked child: have the library start again by itself, at a span, and wait for that."""
    import ebpftrace.runtime.session as runtime

    with span("first"):
        pass
    deadline = time.monotonic() + timeout_s
    while (runtime._session is None or not runtime._session.active) and time.monotonic() < deadline:
        time.sleep(0.01)
    return watch(runtime._session)


def oracle():
    """The oracle of this process."""
    if _oracle is None or _oracle.pid != os.getpid():
        raise RuntimeError("a forked process needs an oracle of its own: start()")
    return _oracle


def check():
    """Make one check here."""
    frame = sys._getframe(1)
    oracle().check(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")


@functools.cache
def tracer():
    """Of all spans here; its provider exports nothing."""
    from opentelemetry.sdk.trace import TracerProvider

    return TracerProvider(shutdown_on_exit=False).get_tracer("context-matrix")


def span(name):
    """A span that is current in the block."""
    return tracer().start_as_current_span(name)
