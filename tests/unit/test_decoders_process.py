# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import grp
import os
import pwd
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.decoders.process import argv, exec_name, exit_code, exit_error, gid, pid, uid

ARGUMENT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/usr/bin/date\0\0", "exec date"),
        (b"date\0", "exec date"),
        (b"./x\xff\0", "exec x\ufffd"),
        (b"/a/b\0/c/d", "exec b"),
    ],
)
def test_exec_name(path, name):
    """The run of a binary is called after the last part of its path."""
    assert name == exec_name(path)


@pytest.mark.parametrize(
    ("data", "arguments"),
    [
        (b"sh\0-c\0true\0", ("sh", "-c", "true")),
        (b"sh\0-c\0cut of", ("sh", "-c", "cut of")),
        (b"sh\0\0last\0\0\0", ("sh", "", "last")),
        (b"\xff\0", ("\ufffd",)),
        (b"\0\0", None),
        (b"", None),
    ],
)
def test_argv(data, arguments):
    """Arguments end at a NUL each; the last one may be cut, an empty one in between stays."""
    assert arguments == argv(data)


@given(st.lists(ARGUMENT, min_size=1), ARGUMENT.filter(bool), st.integers(0, 8))
def test_argv_keeps_text(arguments, last, padding):
    """Whatever a process was given comes out again, however the rest of the field is filled with NULs."""
    data = b"".join(argument.encode() + b"\0" for argument in [*arguments, last])

    assert (*arguments, last) == argv(data + bytes(padding))


@given(st.binary(max_size=600))
def test_argv_of_anything(data):
    """Any bytes are arguments."""
    for argument in argv(data) or ():
        assert "\0" not in argument


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (0, 0, None),
        (3 << 8, 3, "exit code 3"),
        (255 << 8, 255, "exit code 255"),
        (9, None, "killed by SIGKILL"),
        (11 | 0x80, None, "killed by SIGSEGV"),  # with a core dump
        (40, None, "killed by"),
    ],
)
def test_exit(status, code, error):
    """An exit code is one only where the process exited; the error is in words."""
    assert code == exit_code(status)
    assert error == exit_error(status) or exit_error(status).startswith(error)


@given(st.integers(0, 0xFFFF))
def test_exit_of_any_status(status):
    """Every status of wait(2) is an exit code or a signal, or neither, and never both."""
    assert exit_code(status) is None or "killed" not in (exit_error(status) or "")


@given(st.integers(0, (1 << 64) - 1))
def test_exit_of_any_number(value):
    """What is no wait status at all does no harm either."""
    assert isinstance(exit_code(value), int | None)
    assert isinstance(exit_error(value), str | None)


def test_names():
    """Users and groups have the names of this machine; others say that they are not known."""
    assert pwd.getpwuid(os.getuid()).pw_name == uid(os.getuid())
    assert grp.getgrgid(0).gr_name == gid(0)
    assert ["unknown:4294967294"] * 2 == [uid(0xFFFFFFFE), gid(0xFFFFFFFE)]
    assert [f"unknown:{1 << 64}"] * 3 == [uid(1 << 64), gid(1 << 64), pid(1 << 64)]


def test_pid():
    """A process that runs has its command, and keeps it for the records that come after its end."""
    child = subprocess.Popen(["/bin/sh", "-c", "echo; read x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()  # its name changes only after it was started
    number = child.pid
    try:
        before = pid(number)
    finally:
        child.communicate()

    assert "sh" == before == pid(number)
    assert "swapper" == pid(0)
    assert "unknown:-1" == pid(-1)
