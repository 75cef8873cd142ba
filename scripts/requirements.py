# SPDX-License-Identifier: Apache-2.0
"""Print pyproject.toml's build requirements, one a line.

We build without isolation, in the project's own environment: CMake keeps the paths of what it built
with, and an isolated environment is gone afterwards. So its requirements are installed first.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
print(*project["build-system"]["requires"], sep="\n")
