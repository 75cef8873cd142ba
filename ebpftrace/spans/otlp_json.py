# SPDX-License-Identifier: Apache-2.0
"""OTLP/JSON lines: the encoder, and an exporter that appends one ExportTraceServiceRequest a line to a file."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from ebpftrace.errors import ConfigError
from ebpftrace.spans.fork import ForkLock
from ebpftrace.spans.json_encoder import encode
from ebpftrace.spans.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["FileSpanExporter", "encode"]

_log = logging.getLogger("ebpftrace.spans")


class FileSpanExporter(SpanExporter):
    """One line a batch, each written by one `write()` on an O_APPEND descriptor.

    On a local file system that makes lines whole even when several processes (also forked children, which share the
    descriptor) append to the same file; on NFS, and on a pipe for lines above 4 KiB, it does not. When the disk is
    full the batch is lost and counted, a line that was cut short is ended with a newline before the next one, and
    exporting works again as soon as there is space.

    Args:
        path: file to append to; created with mode 0644 when missing, its directory is not.

    Raises:
        ConfigError: the file cannot be opened for appending.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._fd = os.open(self.path, flags, 0o644)
        except OSError as err:
            raise ConfigError(
                f"cannot write spans to {self.path}: {err.strerror}; give a file in an existing, writable directory"
            ) from err
        self._torn = False
        self._tally = Tally()
        # Against shutdown() closing the descriptor, and somebody else getting its number, in front of a write.
        self._lock = ForkLock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append one line; FAILURE, counted and logged once, when it could not be written whole."""
        if not spans:
            return SpanExportResult.SUCCESS
        reason = self._append(encode(spans) + b"\n")
        if not reason:
            self._tally.add("exported", len(spans))
            return SpanExportResult.SUCCESS
        self._tally.add("failed", len(spans))
        if self._tally.first("errors"):
            _log.warning("cannot write spans to %s: %s; lost spans are counted", self.path, reason)
        return SpanExportResult.FAILURE

    def _append(self, line: bytes) -> str:
        # Returns why it failed; empty when it did not.
        with self._lock:
            if self._fd < 0:
                return "the exporter is shut down"
            if self._torn:
                line = b"\n" + line
            try:
                written = os.write(self._fd, line)
            except OSError as err:
                return err.strerror or str(err)
            # write() stops short instead of failing when the disk, or the file's size limit, ends in the middle.
            cut_short = written < len(line)
            self._torn = cut_short and (self._torn or written > 0)
        return f"only {written} of {len(line)} bytes fitted" if cut_short else ""

    @property
    def exported(self) -> int:
        """Spans written by this process."""
        return self._tally["exported"]

    @property
    def failed(self) -> int:
        """Spans lost by this process."""
        return self._tally["failed"]

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # noqa: ARG002  (the SDK's signature)
        """Nothing is buffered in the process; durability is the kernel's business."""
        return True

    def shutdown(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
