# SPDX-License-Identifier: Apache-2.0
"""Finding BCC's own Python module, which distributions install for their Python only."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ebpftrace.errors import UnsupportedError

_DISTRIBUTION = (Path("/usr/lib/python3/dist-packages"), Path("/usr/lib/python3/site-packages"))
_NAME = "bcc"
INSTALL = "on Debian and Ubuntu: apt-get install python3-bpfcc linux-headers-$(uname -r)"


def load_bcc(places: tuple[Path, ...] = _DISTRIBUTION) -> Any:
    """Import BCC's module `bcc` and return it; afterwards `import bcc` finds it too.

    A virtual environment does not see what the distribution installed. BCC is pure Python over a shared library, so it
    is taken from there, and nothing else is.

    Args:
        places: directories that may have it, beside `sys.path`.

    Raises:
        UnsupportedError: it is not installed, or what is there under this name is something else.
    """
    try:
        module = importlib.import_module(_NAME) if _is_on_path() else _from_places(places)
    except ImportError as error:
        raise UnsupportedError("BCC", str(error), INSTALL) from error
    except OSError as error:  # ctypes: libbcc.so.0 is not there
        raise UnsupportedError("BCC", f"its library cannot be loaded: {error}", INSTALL) from error
    return refuse_other(module)


def refuse_other(module: Any) -> Any:
    """Return BCC's module as it is.

    Raises:
        UnsupportedError: it is another one of that name.
    """
    if not hasattr(module, "BPF"):
        raise UnsupportedError(
            "BCC",
            f"the module {_NAME!r} of {getattr(module, '__file__', None) or 'this process'} has no class BPF: the "
            "package 'bcc' on PyPI is something else",
            f"pip uninstall bcc; {INSTALL}",
        )
    return module


def _is_on_path() -> bool:
    """Is a module of that name there? A mere directory, such as one of tests, is none."""
    if _NAME in sys.modules:
        return True
    spec = importlib.util.find_spec(_NAME)
    return spec is not None and spec.origin is not None


def _from_places(places: tuple[Path, ...]) -> Any:
    for place in places:
        path = place / _NAME / "__init__.py"
        if not path.is_file():
            continue
        spec = importlib.util.spec_from_file_location(_NAME, path, submodule_search_locations=[str(path.parent)])
        if spec is None or spec.loader is None:
            continue
        module = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[_NAME]
            raise
        return module
    raise ModuleNotFoundError(f"no module named {_NAME!r} on sys.path or in {', '.join(map(str, places))}")
