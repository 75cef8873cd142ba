# SPDX-License-Identifier: Apache-2.0
"""What an application may use, and what importing it costs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import ebpftrace
from ebpftrace import errors

NAMES = ["Session", "__version__", "enable", "start", "stats", "stop", "trace_socket", "traced"]


def loaded_by(code):
    """Modules that a fresh interpreter has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


def test_names():
    """The public names are these, and all are there."""
    assert NAMES == sorted(ebpftrace.__all__)
    for name in NAMES:
        assert getattr(ebpftrace, name) is not None
    assert set(NAMES) <= set(dir(ebpftrace)) | {"Session", "enable", "trace_socket", "traced"}


def test_unknown_name():
    """A name that is not there is an AttributeError that names it."""
    with pytest.raises(AttributeError, match="nothing"):
        _ = ebpftrace.nothing


def test_version():
    """The version is the distribution's."""
    assert version("ebpftrace") == ebpftrace.__version__


def test_docstrings():
    """Every public name says what it is for."""
    for name in NAMES:
        assert name == "__version__" or inspect.getdoc(getattr(ebpftrace, name))


def test_import_cost():
    """Importing the package loads neither the SDK nor libbpf nor a YAML parser."""
    unwanted = {"opentelemetry.sdk", "cffi", "_cffi_backend", "yaml", "msgspec", "opentelemetry", "asyncio"}

    assert set() == unwanted & loaded_by("import ebpftrace")


def test_cost_of_enable():
    """Both enable and traced need OpenTelemetry's API, not its SDK, and not libbpf."""
    unwanted = {"opentelemetry.sdk", "cffi", "_cffi_backend", "yaml", "ebpftrace.kernel"}

    assert set() == unwanted & loaded_by("import ebpftrace\nebpftrace.enable\nebpftrace.traced")


def test_before_start():
    """Before start() there is nothing to stop, and stats() says why there are none."""
    ebpftrace.stop()

    assert {"active": False, "reason": "start() was not called"} == ebpftrace.stats()


@pytest.mark.parametrize("argument", ["programs", "enable", "exec_roots"])
def test_one_name_instead_of_a_list(argument):
    """A text where a list of names is meant is an error that shows what was meant."""
    with pytest.raises(errors.ConfigError, match=rf"{argument}=\['sched'\]"):
        ebpftrace.start(**{argument: "sched"})


def test_errors():
    """All errors have one base; a ConfigError is a ValueError, too."""
    found = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, Exception)]

    assert all(issubclass(each, errors.EbpftraceError) for each in found)
    assert issubclass(errors.ConfigError, ValueError)
    assert {"EbpftraceError", "BpfError", "LoadError", "AttachError", "UnsupportedError", "ConfigError"} <= {
        each.__name__ for each in found
    }


def test_bpf_error():
    """A BpfError says what was done, why it failed, and what libbpf said."""
    error = errors.BpfError("load 'x'", errno=1, log="line 1\nline 2")

    assert "cannot load 'x': Operation not permitted [EPERM]" == str(error)
    assert ["libbpf said:\nline 1\nline 2"] == error.__notes__
    assert "cannot y: odd [4001]" == str(errors.BpfError("y", errno=4001, reason="odd"))
