# SPDX-License-Identifier: Apache-2.0
"""A small shop under a CPU quota: the service, its clients, and what runs the two."""

from __future__ import annotations
