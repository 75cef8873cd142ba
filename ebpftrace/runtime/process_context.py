# SPDX-License-Identifier: Apache-2.0
"""The OTEP 4719 process context: what this process is, and where to find its threads' contexts, for other readers.

The OpenTelemetry eBPF profiler and others look for it in a process's memory mappings. It says the application's
resource and, by its `threadlocal.*` attributes, that the symbol of OTEP 4947 leads to each thread's context. A process
has one at most: where a vendor's is in place already, ours is not published, nor are threads found by the symbol.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider

from ebpftrace.context import _publisher
from ebpftrace.runtime.otel import hook_get_tracer
from ebpftrace.spans.protobuf import key_value, sized

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger("ebpftrace.runtime")

SCHEMA_VERSION = "tlsdesc_v1_dev"
"""What readers know; OTEP 4947 is to rename it to tls_v1."""
MAX_PAYLOAD_BYTES = 1 << 16
"""Readers take no more."""

_NAMES = ("[anon_shmem:OTEL_CTX]", "[anon:OTEL_CTX]", "/memfd:OTEL_CTX")


class ProcessContext:
    """This process's context, published while it is open, with the resource of whichever provider is the application's.

    Attributes:
        reason: why it is not published, in words; "" when it is.
    """

    def __init__(self) -> None:
        self.reason = "it was not opened"
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._payload = b""
        self._open = False
        self._seen: weakref.WeakSet[TracerProvider] = weakref.WeakSet()
        self._unhook: Callable[[], None] | None = None

    @property
    def published(self) -> bool:
        """Can others read it?"""
        return not self.reason

    def open(self) -> None:
        """Publish it, unless there is one already. To come before the publisher is armed."""
        other = find_mapping()
        if other:
            self.reason = f"somebody else's is in place: {other}"
            logger.info("this process's OTEP 4719 process context is left alone, %s", self.reason)
            return
        self._open = True
        provider = trace._TRACER_PROVIDER  # not get_tracer_provider(): that may make one
        # by the OTEL_* variables alone: Resource.create() asks all detectors, and some ask the network
        self._publish(provider.resource if isinstance(provider, TracerProvider) else OTELResourceDetector().detect())
        if self.published:
            self._unhook = hook_get_tracer(self.update)

    def update(self, provider: TracerProvider) -> None:
        """Say the resource of the global provider; while there is none, of this one. Never raises."""
        if provider in self._seen or self._pid != os.getpid():  # in the child of a fork that Python was not told of
            return
        known = trace._TRACER_PROVIDER
        try:
            self._publish(known.resource if isinstance(known, TracerProvider) else provider.resource)
            self._seen.add(provider)
        except Exception as error:  # noqa: BLE001  (this is the application asking for a tracer)
            logger.warning("the process context keeps the resource that it has: %s", error)

    def _publish(self, resource: Resource) -> None:
        payload = encode(resource.attributes)
        with self._lock:
            if not self._open or payload == self._payload:
                return
            try:
                _publisher.otel_publish(payload)
            except OSError as error:
                self.reason = f"it cannot be mapped: {error.strerror}"
                logger.info("there is no OTEP 4719 process context: %s", self.reason)
            else:
                self._payload = payload
                self.reason = ""

    def forget(self) -> None:
        """In the child of a fork: the publisher has forgotten it already."""
        self._open = False
        self.reason = "the process forked"
        if self._unhook is not None:
            self._unhook()

    def close(self) -> None:
        """Take it away; idempotent."""
        if self._unhook is not None:
            self._unhook()
            self._unhook = None
        with self._lock:
            self._open = False
            if self.published:
                self.reason = "it was taken away"
                _publisher.otel_withdraw()

    def stats(self) -> dict[str, Any]:
        """Return what became of it."""
        return {"published": self.published, "reason": self.reason}


def try_out() -> tuple[bool, str]:
    """Can a process context be published from here, and what was seen? Leaves nothing behind."""
    if _publisher.otel_address():
        return True, "published"
    context = ProcessContext()
    context.open()
    if not context.published:
        return False, context.reason
    seen = find_mapping()
    context.close()
    return bool(seen), seen.partition(" at ")[0] or "published, but not in /proc/self/maps"


def find_mapping(maps: Path = Path("/proc/self/maps")) -> str:
    """Return "NAME at ADDRESS" of a process context that is in place, whoever made it; "" without one."""
    try:
        lines = os.fsdecode(maps.read_bytes()).splitlines()
    except OSError as error:  # no /proc: nobody finds ours either
        logger.debug("%s cannot be read: %s", maps, error)
        return ""
    for line in lines:
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[5].startswith(_NAMES):
            return f"{words[5]} at {words[0].partition('-')[0]}"
    return ""


def encode(resource: Mapping[str, Any]) -> bytes:
    """Encode ProcessContext{Resource resource = 1; repeated KeyValue attributes = 2}.

    A resource that is too large for readers is cut to its `service.*`, `telemetry.*` and `host.*` attributes, or
    to none.
    """
    threads = {"threadlocal.schema_version": SCHEMA_VERSION, "threadlocal.attribute_key_map": ()}
    tail = b"".join(sized(2, key_value(key, value)) for key, value in threads.items())
    some = {key: value for key, value in resource.items() if key.startswith(("service.", "telemetry.", "host."))}
    for attributes in (resource, some):
        head = sized(1, b"".join(sized(1, key_value(key, value)) for key, value in attributes.items()))
        if len(head) + len(tail) <= MAX_PAYLOAD_BYTES:
            return head + tail
    logger.info("the resource is too large for the process context, which goes without")
    return tail
