# SPDX-License-Identifier: Apache-2.0
"""What a run has written: OTLP JSON lines read back."""

from __future__ import annotations

import json


def spans_of(output):
    """The spans of a file of OTLP JSON lines, attributes as a dict."""
    found = []
    for line in output.read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                found += scope["spans"]
    for span in found:
        span["attributes"] = {each["key"]: next(iter(each["value"].values())) for each in span.get("attributes", ())}
    return found
