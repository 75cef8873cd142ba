# SPDX-License-Identifier: Apache-2.0
"""How much room is left in the batch queues behind a span processor.

A full BatchSpanProcessor throws its *oldest* span away, whoever it belongs to. Kernel spans come in bursts of
thousands; without looking first, they would push the application's own spans out of its own exporter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import SpanProcessor

_SHARE = 0.75  # of a queue that kernel spans may fill; the rest is the application's


class Backlog:
    """Looks at the queues of the SDK's own batch processors, which have no public way to ask.

    Knows both layouts of the SDK (queue in the processor, and in its `_batch_processor`). Other processors are taken
    to have room always: what they do with too many spans is theirs to count.

    Args:
        processor: a provider's active span processor; looked through at each question, for processors come late.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        self._processor = processor

    def room(self) -> int | None:
        """Spans that still fit into the fullest queue (0 when none does); None when there is no queue to look at."""
        rooms = [limit - length for length, limit in _queues(self._processor)]
        return max(0, min(rooms)) if rooms else None


def _queues(processor: object) -> Iterator[tuple[int, int]]:
    children = getattr(processor, "_span_processors", None)
    if isinstance(children, tuple):
        for child in children:
            yield from _queues(child)
        return
    holder = getattr(processor, "_batch_processor", None)
    prefix = "" if holder is None else "_"
    holder = holder or processor
    queue = getattr(holder, f"{prefix}queue", None)
    size = getattr(holder, f"{prefix}max_queue_size", None)
    batch = getattr(holder, f"{prefix}max_export_batch_size", None)
    if queue is not None and isinstance(size, int) and isinstance(batch, int):
        # Never below one batch: the processor's thread sleeps until a batch is full, and would not make room.
        yield len(queue), max(batch, int(size * _SHARE))
