# SPDX-License-Identifier: Apache-2.0
"""`make test-vm`: see vmtest/cli.py."""

from __future__ import annotations

import sys

from vmtest.cli import main

sys.exit(main())
