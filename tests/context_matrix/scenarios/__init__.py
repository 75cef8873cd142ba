# SPDX-License-Identifier: Apache-2.0
"""What is checked: functions by family. None imports a framework before it runs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MODULES = ("plain", "aio", "structured", "greens", "processes", "asgi", "wsgi")
SABOTAGE = "sabotage"
"""What proves that the checks can fail; not in the table."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One function that makes checks.

    Args:
        family: what the table groups it under.
        name: within the family.
        function: takes nothing; makes checks by `oracle.check()`.
        needs: importable modules.
        since: the first Python.
        alone: in a process of its own, and it starts the library by itself.
        quick: it is in `make test`.
        excused: why a check may find no context though the hooks are on; else none may.
    """

    family: str
    name: str
    function: Callable[[], None]
    needs: tuple[str, ...] = ()
    since: tuple[int, int] = (3, 11)
    alone: bool = False
    quick: bool = False
    excused: str = ""


def load(modules=MODULES):
    """All scenarios, in the order of the table."""
    return [each for name in modules for each in importlib.import_module(f"scenarios.{name}").SCENARIOS]


class Collector(list):
    """The scenarios of one module, as its decorator finds them."""

    def __call__(self, family, name=None, **options):
        """Take in the decorated function."""

        def take(function):
            self.append(Scenario(family, name or function.__name__.replace("_", " "), function, **options))
            return function

        return take
