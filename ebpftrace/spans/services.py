# SPDX-License-Identifier: Apache-2.0
"""The resource of spans that name a service of their own; one place, for both ways out must agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def service_attributes(attributes: Mapping[str, Any], service: str) -> dict[str, Any]:
    """Put `service` into a resource's attributes, in place of all `service.*`.

    Host and deployment are the same; version, instance and namespace would be those of another service.
    """
    others = {key: value for key, value in attributes.items() if not key.startswith("service.")}
    return {**others, "service.name": service}
