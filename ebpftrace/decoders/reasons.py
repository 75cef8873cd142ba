# SPDX-License-Identifier: Apache-2.0
"""Why the kernel threw a packet away or broke a connection off, by its own name for it.

The numbers differ from kernel to kernel, also with its configuration; the names are in the running kernel's BTF.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_DROP = ("trace_event_raw_kfree_skb", ("SKB_DROP_REASON_", "SKB_"))
_RESET = ("trace_event_raw_tcp_send_reset", ("SK_RST_REASON_",))


def drop_reason(value: int) -> str:
    """`enum skb_drop_reason` without its prefix ("NO_SOCKET")."""
    return _names(*_DROP).get(value) or f"unknown:{value}"


def reset_reason(value: int) -> str:
    """`enum sk_rst_reason` without its prefix ("TCP_ABORT_ON_DATA")."""
    return _names(*_RESET).get(value) or f"unknown:{value}"


@functools.cache
def _names(record: str, prefixes: tuple[str, ...]) -> Mapping[int, str]:
    """The names of the member `reason` of a tracepoint's record; empty where the kernel tells no reasons."""
    from ebpftrace.errors import UnsupportedError
    from ebpftrace.kernel.btf import Btf

    try:
        fields = Btf.kernel().fields(record)
    except (KeyError, UnsupportedError):
        return {}
    names = next((field.names for field in fields if field.name == "reason"), None) or {}
    return {value: _without(name, prefixes) for value, name in names.items()}


def _without(name: str, prefixes: tuple[str, ...]) -> str:
    """The name without the first of the prefixes that it has."""
    return next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)
