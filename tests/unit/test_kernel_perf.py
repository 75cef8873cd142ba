# SPDX-License-Identifier: Apache-2.0
"""What an attach that is refused says of perf events."""

from __future__ import annotations

import errno

import pytest

from ebpftrace.errors import AttachError
from ebpftrace.kernel.perf import paranoid_hint


@pytest.fixture
def setting(tmp_path):
    """The kernel's, at the level that only some distributions have."""
    path = tmp_path / "perf_event_paranoid"
    path.write_text("3\n")
    return path


def test_refused(setting):
    """Where a perf event takes CAP_SYS_ADMIN, a refusal says so and both ways out."""
    hint = paranoid_hint(errno.EACCES, setting)

    assert "kernel.perf_event_paranoid is 3" in hint
    assert "sysctl kernel.perf_event_paranoid=2" in hint
    assert "--capabilities-keep bpf,perfmon,syslog,sys_admin" in hint


@pytest.mark.parametrize(("number", "level"), [(errno.EINVAL, "3"), (errno.EACCES, "2"), (errno.EACCES, "?")])
def test_another_reason(setting, number, level):
    """Any other refusal is left as it is."""
    setting.write_text(level)

    assert not paranoid_hint(number, setting)


def test_no_setting(tmp_path):
    """Without the file nothing is known of it."""
    assert not paranoid_hint(errno.EACCES, tmp_path / "none")


def test_message():
    """A hint is the end of the message."""
    error = AttachError("attach 'x'", errno=errno.EACCES, hint="do this")

    assert "cannot attach 'x': Permission denied [EACCES]; do this" == str(error)
