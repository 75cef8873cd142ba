# SPDX-License-Identifier: Apache-2.0
"""The reader of a BCC program's buffers: its life and its counters."""

from __future__ import annotations

import atexit
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Self

from ebpftrace.bcc.tables import ClosedError, is_closed, release

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ebpftrace.bcc.output import Output
    from ebpftrace.bcc.program import BccProgram
    from ebpftrace.bcc.sources import Source
    from ebpftrace.spans.pipeline import Pipeline

logger = logging.getLogger("ebpftrace.bcc")

DROPS = "ebt_drops"
"""The table of our header in which a program counts the records that found no room."""


class Program:
    """What a reader wants to know of the program, and that it may be closed at any time.

    Args:
        bpf: the BPF object.
        buffers: what is read of it, by name.

    Attributes:
        error: what happened to it, in words; "" = nothing did.
    """

    def __init__(self, bpf: Any, buffers: Sequence[str]) -> None:
        self.buffers = tuple(buffers)
        self.error = ""
        self.bpf = bpf
        self._drops = 0
        try:
            self._table = bpf[DROPS]
        except KeyError:
            self._table = None

    def release(self) -> None:
        """Let others read the buffers; idempotent."""
        release(self.bpf, self.buffers)

    def over(self) -> bool:
        """Is it closed?"""
        return is_closed(self.bpf)

    def note_end(self) -> None:
        """Say once that it was closed; all that it had submitted was read."""
        if not self.error:
            names = ", ".join(map(repr, self.buffers))
            self.error = (
                f"the BPF object was closed while {names} was read: what it had submitted was read, and nothing "
                "follows: close the reader first"
            )
            logger.warning("%s", self.error)

    def drops(self) -> int:
        """Return the records that a program with our header could not submit, by its own count; of others 0."""
        if self._table is not None and not self.over():
            self._drops = int(self._table.sum(0).value)
        return self._drops


class BccReader:
    """Makes spans of a program's records until it is closed; what `spans()` returns. Also a context manager.

    Attributes:
        buffers: what it reads, by name.
    """

    def __init__(
        self, program: Program, pipeline: Pipeline, output: Output, source: Source, *, closes_output: bool = True
    ) -> None:
        self.buffers = program.buffers
        self._closes_output = closes_output
        self._program = program
        self._pipeline = pipeline
        self._output = output
        self._source = source
        self._pid = os.getpid()
        self._closed = False
        self._last: dict[str, Any] = {}
        self._loaded: BccProgram | None = None
        atexit.register(self.close)

    def owns(self, program: BccProgram) -> Self:
        """Close the program together with this reader, which is returned."""
        self._loaded = program
        return self

    @property
    def bpf(self) -> Any:
        """The `bcc.BPF` that is read."""
        return self._program.bpf

    @property
    def error(self) -> str:
        """Why it stopped by itself, in words; "" = it did not."""
        return self._program.error

    def poll(self, timeout_ms: int = 100) -> int:
        """Read what is there, waiting for it at most this long; return the number of records.

        Only for a reader that was made with `thread=False`.

        Raises:
            ClosedError: the BPF object was closed; what it had submitted has been read.
            ConfigError: this reader has a thread, or BCC polls.
        """
        if self._closed:
            raise ClosedError("this reader is closed")
        count = self._source.poll(timeout_ms)
        if not count and self._program.over():
            self._program.note_end()
            raise ClosedError(self.error)
        return count

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Make spans of all that was submitted before this call, and export them when the exporter is ours.

        Returns False when the time was not enough, or spans were lost.
        """
        deadline = time.monotonic() + timeout_s
        return self._source.flush(timeout_s) and self._output.flush(max(0.0, deadline - time.monotonic()))

    def stats(self) -> dict[str, Any]:
        """Return the counters, also after `close()`.

        `records` were read; `undecoded` of them made no span, by reason; `lost` by reason were never read: "buffer"
        the kernel had no room for (perf buffers count that themselves, for ring buffers a program has to, as our
        header does), "queue" came faster than spans were made, or when that failed; then the sink's.
        """
        if self._last:
            return self._last
        programs = self._pipeline.stats().values()
        undecoded: dict[str, int] = {}
        for stats in programs:
            for reason, count in stats.undecoded.items():
                undecoded[reason] = undecoded.get(reason, 0) + count
        return {
            "records": sum(stats.records for stats in programs),
            "undecoded": undecoded,
            "lost": {
                "buffer": sum(self._source.lost(number) for number in range(len(self.buffers))) + self._program.drops(),
                "queue": self._source.thrown_away,
            },
            **self._output.stats(),
        }

    def close(self) -> None:
        """Make spans of what is left and stop; idempotent.

        BCC's program runs on, if it is not closed already; one that `ebpftrace.bcc.load()` has loaded is unloaded.
        """
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        if os.getpid() != self._pid:  # the child of a fork: all this is its parent's
            return
        self._source.close()
        self._program.release()
        self._last = self.stats()
        if self._closes_output:
            self._output.close()
        self._last |= self._output.stats()
        if self._loaded is not None:
            self._loaded.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
