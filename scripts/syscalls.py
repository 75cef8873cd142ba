# SPDX-License-Identifier: Apache-2.0
"""Write this machine's system call numbers as JSON, from the C library's own header (run by CMake).

Usage: syscalls.py OUTPUT CC [FLAG...]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path


def main(output: str, *compiler: str) -> None:
    """Ask `compiler` for the macros of asm/unistd.h and write them to `output`."""
    source = "#include <asm/unistd.h>\n"
    command = [*compiler, "-E", "-dM", "-x", "c", "-"]
    macros = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    calls = {name: int(number) for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", macros, re.MULTILINE)}
    if "read" not in calls:
        sys.exit(f"syscalls.py: {' '.join(command)} shows no system calls in asm/unistd.h")
    Path(output).write_text(json.dumps(calls, sort_keys=True, indent=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
