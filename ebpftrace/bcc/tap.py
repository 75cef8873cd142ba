# SPDX-License-Identifier: Apache-2.0
"""Spans from a tool that knows nothing of us: whatever buffer it opens, its callback gets a companion."""

from __future__ import annotations

import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any

from ebpftrace.bcc import compat
from ebpftrace.bcc.header import cflags
from ebpftrace.bcc.layouts import describe, layouts_of
from ebpftrace.bcc.output import Output, Stamp
from ebpftrace.bcc.reader import BccReader, Program
from ebpftrace.bcc.sources import TapSource
from ebpftrace.bcc.tables import Buffer
from ebpftrace.errors import EbpftraceError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("ebpftrace.bcc")

_PERF_PAGES = 8  # BCC's default
_POLLS = ("perf_buffer_poll", "perf_buffer_consume", "ring_buffer_poll", "ring_buffer_consume")


class Taps:
    """Hooks into BCC: every buffer that is opened from now on makes spans, until `close()`.

    Args:
        bcc: its module.
        tool: name of the spans, and of their program, unless a file says it.
        config: path of a YAML file; only what it describes makes spans. None = every buffer, as BCC knows it.
        stamp: what the records' times are.
        service_name: of the spans.
        output: a file for the spans; "" = the OTEL_* variables.

    Attributes:
        ending: what is to end the tool when BCC comes back from polling: an exception in a callback does not get
            through the C code around that.

    Raises:
        EbpftraceError: the file, or an OTEL_* variable, is wrong.
    """

    def __init__(
        self, bcc: Any, tool: str, config: str | None, *, stamp: Stamp, service_name: str, output: str
    ) -> None:
        self._description = describe(config, ())
        self._program = self._description.program if config else tool
        self._name = "" if config else tool  # buffers are called "events" nearly always
        self._stamp: Stamp = stamp
        self._output = Output(None, service_name=service_name, output=output)
        self.ending: BaseException | None = None
        self._readers: list[BccReader] = []
        self._restore: list[Callable[[], None]] = []
        self._hook(bcc.table.PerfEventArray, "open_perf_buffer", self._perf)
        self._hook(bcc.table.RingBuf, "open_ring_buffer", self._ring)
        self._more_flags = cflags(context=False) if compat.flags() else []
        if self._more_flags:
            self._signature = inspect.signature(bcc.BPF.__init__)
            self._hook(bcc.BPF, "__init__", self._compile)
        for name in _POLLS:
            if hasattr(bcc.BPF, name):
                self._hook(bcc.BPF, name, self._poll)

    def _hook(self, owner: Any, name: str, stand_in: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def hooked(owner: Any, *args: Any, **kwargs: Any) -> Any:
            return stand_in(original, owner, *args, **kwargs)

        setattr(owner, name, hooked)
        self._restore.append(lambda: setattr(owner, name, original))

    def _compile(self, original: Any, bpf: Any, *args: Any, **kwargs: Any) -> None:
        given = self._signature.bind(bpf, *args, **kwargs)
        given.arguments["cflags"] = [*given.arguments.get("cflags", ()), *self._more_flags]
        original(*given.args, **given.kwargs)

    def _perf(
        self, original: Any, table: Any, callback: Any, page_cnt: int = _PERF_PAGES, lost_cb: Any = None, **more: Any
    ) -> None:
        source = self._tap(Buffer(_name(table), table, "perf"))
        if source is not None:
            callback, lost_cb = source.tap(0, self._guarded(callback)), source.tap_lost(0, lost_cb)
        original(table, callback, page_cnt=page_cnt, lost_cb=lost_cb, **more)

    def _ring(self, original: Any, table: Any, callback: Any, ctx: Any = None) -> None:
        source = self._tap(Buffer(_name(table), table, "ring"))
        original(table, callback if source is None else source.tap(0, self._guarded(callback)), ctx)

    def _poll(self, original: Any, bpf: Any, *args: Any, **kwargs: Any) -> None:
        original(bpf, *args, **kwargs)
        if self.ending is not None:
            ending, self.ending = self.ending, None
            raise ending

    def _guarded(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(callback)
        def guarded(*args: Any) -> Any:
            try:
                return callback(*args)
            except (SystemExit, KeyboardInterrupt) as ending:
                self.ending = ending
                return -1  # a ring buffer's reading stops here

        return guarded

    def _tap(self, buffer: Buffer) -> TapSource | None:
        """Set up spans for a buffer; None, with one log line, when it makes none."""
        if self._description.document is not None and buffer.name not in self._description.buffers:
            return None
        try:
            layouts = layouts_of(self._description, buffer, program=self._program, name=self._name)
        except EbpftraceError as error:
            logger.warning("the buffer %r makes no spans: %s", buffer.name, error)
            return None
        pipeline = self._output.pipeline({0: layouts}, self._stamp)
        source = TapSource(pipeline)
        program = Program(buffer.table.bpf, [buffer.name])
        self._readers.append(BccReader(program, pipeline, self._output, source, closes_output=False))
        return source

    def close(self) -> None:
        """Take the hooks back, make spans of what is left, export. Idempotent."""
        while self._restore:
            self._restore.pop()()
        for reader in self._readers:
            reader.close()
        self._output.close()

    def summary(self) -> str:
        """Return one line about what became of the records."""
        stats = [reader.stats() for reader in self._readers]
        records = sum(each["records"] for each in stats)
        undecoded = sum(sum(each["undecoded"].values()) for each in stats)
        lost = sum(sum(each["lost"].values()) for each in stats)
        sink = self._output.stats()
        return (
            f"{records} records, {records - undecoded} spans, {lost} records lost; "
            f"{sink['exported']} spans exported, {sink['failed'] + sink['dropped']} not"
        )


def _name(table: Any) -> str:
    """A buffer's name, which BCC keeps for its own use."""
    name = table._name
    return name.decode() if isinstance(name, bytes) else str(name)
