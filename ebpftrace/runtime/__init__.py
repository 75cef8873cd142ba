# SPDX-License-Identifier: Apache-2.0
"""The library inside an application: programs, reader thread, publisher and provider put together."""

from __future__ import annotations
