# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import types
from pathlib import Path

import pytest

from ebpftrace.bcc import cflags
from ebpftrace.errors import UnsupportedError
from ebpftrace.runtime import session


def test_include():
    """The compiler is told where our header is; without a context that is all."""
    [flag] = cflags(context=False)

    assert Path(flag.removeprefix("-I"), "ebpftrace_bcc.h").is_file()


def test_no_session(monkeypatch):
    """A program that looks for contexts needs a session that publishes them: the error says why there is none."""
    monkeypatch.setattr(session, "latest", lambda: None)
    with pytest.raises(UnsupportedError, match=r"start\(\) was not called; or pass context=False"):
        cflags()
    off = types.SimpleNamespace(_kernel=None, reason="the setting `disabled` is on")
    monkeypatch.setattr(session, "latest", lambda: off)
    with pytest.raises(UnsupportedError, match="the setting `disabled` is on"):
        cflags()
