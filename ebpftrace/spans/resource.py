# SPDX-License-Identifier: Apache-2.0
"""The OpenTelemetry resource that kernel spans come from: the kernel of this host, not the application."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.semconv._incubating.attributes.host_attributes import (
    HOST_ARCH,
    HOST_ID,
    HOST_NAME,
    HostArchValues,
)
from opentelemetry.semconv._incubating.attributes.os_attributes import (
    OS_DESCRIPTION,
    OS_TYPE,
    OS_VERSION,
    OsTypeValues,
)
from opentelemetry.semconv.attributes.service_attributes import SERVICE_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_SERVICE_NAME = "kernel"

_MACHINE_ID = Path("/etc/machine-id")
_ARCH = {
    "x86_64": HostArchValues.AMD64.value,
    "i386": HostArchValues.X86.value,
    "i686": HostArchValues.X86.value,
    "aarch64": HostArchValues.ARM64.value,
    "armv7l": HostArchValues.ARM32.value,
    "ppc64": HostArchValues.PPC64.value,
    "ppc64le": HostArchValues.PPC64.value,
    "s390x": HostArchValues.S390X.value,
}


class SharedResource(Resource):
    """A resource that hashes itself once.

    The OTLP encoder uses the resource of every span as a dict key, and `Resource.__hash__` writes the attributes out
    as JSON each time: 20 µs a span, more than all the rest of ours.
    """

    def __init__(self, attributes: Mapping[str, object], schema_url: str | None = None) -> None:
        super().__init__(attributes, schema_url)  # type: ignore[arg-type]  # Resource cleans what it is given
        self._hash = super().__hash__()

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)

    def __hash__(self) -> int:
        return self._hash


def kernel_resource(service_name: str = DEFAULT_SERVICE_NAME) -> Resource:
    """Describe this host's kernel as the origin of spans.

    OTEL_RESOURCE_ATTRIBUTES is the operator's word about this deployment (cluster, environment, host.name) and wins
    over what is detected; its `service.*`, and OTEL_SERVICE_NAME, describe the application and are left out. There is
    no `os.name`: in a container /etc/os-release names the image, not the system whose kernel this is. For the same
    reason host.name and host.id are the container's when they are not set in OTEL_RESOURCE_ATTRIBUTES.

    Args:
        service_name: how the kernel's lane is called in the backend.
    """
    uname = os.uname()
    attributes: dict[str, object] = {
        HOST_NAME: socket.gethostname(),
        HOST_ARCH: _ARCH.get(uname.machine, uname.machine),
        OS_TYPE: OsTypeValues.LINUX.value,
        OS_VERSION: uname.release,
        OS_DESCRIPTION: f"{uname.sysname} {uname.release} {uname.version}",
    }
    if machine_id := _machine_id():
        attributes[HOST_ID] = machine_id
    from_env = OTELResourceDetector().detect().attributes
    attributes.update({key: value for key, value in from_env.items() if not key.startswith("service.")})
    attributes[SERVICE_NAME] = service_name
    return SharedResource(attributes)


def _machine_id() -> str:
    try:
        return _MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""  # containers often have none: the attribute is optional
