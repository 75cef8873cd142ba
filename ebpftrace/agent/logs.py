# SPDX-License-Identifier: Apache-2.0
"""Logs of the agent: on stderr, one event a line, as text or JSON; for the journal with priorities.

Only a command calls `configure()`: as a library ebpftrace adds no handlers. An event's values go in by
`extra=fields(program=name)`, so that JSON has them as values and text as `program=sched`.

What comes through here may hold bytes from other people's processes: control characters are escaped, so that nobody
writes lines in our name or into a terminal.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

LogFormat = Literal["text", "json"]
FORMATS: tuple[LogFormat, ...] = ("text", "json")

_FIELDS = "ebpftrace_fields"
_SUPPRESSED = "ebpftrace_suppressed"
# C0 without tab and line feed, DEL, C1, and the two line separators of Unicode
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[^\s\"=]+")
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY = 7


def fields(**values: Any) -> dict[str, Any]:
    """Return the `extra` of a log call that carries these values."""
    return {_FIELDS: values}


def configure(
    log_format: LogFormat = "text",
    *,
    verbose: bool = False,
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Send all logs of this process to `stream` (stderr), replacing what was configured before.

    Args:
        log_format: "text" or "json".
        verbose: everything; else ebpftrace's loggers from INFO on and others' from WARNING on.
        stream: where to.
        environ: tells whether the stream is the journal's (JOURNAL_STREAM).
    """
    stream = stream if stream is not None else sys.stderr
    journal = is_journal(stream, os.environ if environ is None else environ)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(journal=journal) if log_format == "json" else TextFormatter(journal=journal))
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("ebpftrace").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(capture=True)


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Is this stream connected to systemd's journal, by device and inode as systemd gave them?"""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
        return (status.st_dev, status.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):  # not set, or a stream without a file descriptor
        return False


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, logger, message, fields, and where there is one, exception.

    Args:
        journal: put the priority before it, which the journal takes off again.
    """

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, Any] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if values := _values(record):
            entry["fields"] = values
        if text := _exception(self, record):
            entry["exception"] = text
        line = json.dumps(entry, default=str, ensure_ascii=True)
        return f"<{_priority(record)}>{line}" if self._journal else line


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: message key=value`; the journal has time and level by itself.

    Args:
        journal: stderr is the journal's.
    """

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and indented below it the exception and further lines of the message."""
        words = [f"{record.name}: {record.getMessage()}"]
        words += [f"{key}={_quoted(value)}" for key, value in _values(record).items()]
        text = " ".join(words)
        if exception := _exception(self, record):
            text += "\n" + exception
        text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
        head = f"<{_priority(record)}>" if self._journal else f"{_timestamp(record.created)} {record.levelname:<7} "
        # the journal makes an entry of each line, so each needs its priority
        return head + text.replace("\n", f"\n{head if self._journal else ''}  ")


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _priority(record: logging.LogRecord) -> int:
    return next((priority for level, priority in _PRIORITIES if record.levelno >= level), _DEBUG_PRIORITY)


def _values(record: logging.LogRecord) -> dict[str, Any]:
    values = dict(getattr(record, _FIELDS, {}))
    if suppressed := getattr(record, _SUPPRESSED, 0):
        values["suppressed"] = suppressed
    return values


def _quoted(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""


class RepeatFilter(logging.Filter):
    """Lets one event (logger, level, message before its values) through some times a minute, and counts the rest.

    The next line of that event says how many were held back (`suppressed`). Errors of other people's code in a hot
    path, too, then cost a few lines and not a disk.

    Args:
        burst: lines in one interval.
        interval_s: of counting.
    """

    _MAX_EVENTS = 1024

    def __init__(self, burst: int = 20, interval_s: float = 60.0) -> None:
        super().__init__()
        self._burst = burst
        self._interval_s = interval_s
        self._seen: dict[tuple[str, int, str], tuple[float, int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to write this record; called with the handler's lock not held, so races cost a line at most."""
        event = (record.name, record.levelno, str(record.msg))
        now = time.monotonic()
        since, count, held_back = self._seen.get(event, (now, 0, 0))
        if now - since >= self._interval_s:
            since, count = now, 0
        if count >= self._burst:
            self._seen[event] = (since, count, held_back + 1)
            return False
        if held_back:
            setattr(record, _SUPPRESSED, held_back)
        if event not in self._seen and len(self._seen) >= self._MAX_EVENTS:
            self._seen.clear()
        self._seen[event] = (since, count + 1, 0)
        return True
