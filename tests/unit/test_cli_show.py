# SPDX-License-Identifier: Apache-2.0
import argparse
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ebpftrace.cli.show import ShowCommand
from ebpftrace.errors import CommandError

REPORT = Path(__file__).parent.parent / "data" / "viewer_report.jsonl"
SLOWEST = "4bf92f3577b34da6a3ce929d0e0e4736"
SCRIPT = """
import argparse, sys
from ebpftrace.cli.show import ShowCommand
command, parser = ShowCommand(), argparse.ArgumentParser()
command.prepare_parser(parser)
sys.exit(command.run(parser.parse_args()))
"""


def show(*arguments):
    command, parser = ShowCommand(), argparse.ArgumentParser()
    command.prepare_parser(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_slowest_trace_is_shown_and_the_others_are_told(capsys):
    """Of several traces the slowest is shown, with how to see the others."""
    assert 0 == show(REPORT)

    out = capsys.readouterr().out
    assert SLOWEST in out
    assert "The slowest of 3 traces; 2 are not shown: --list names them" in " ".join(out.split())
    assert "\x1b" not in out


def test_trace_is_chosen_by_a_prefix_of_its_id(capsys):
    """--trace takes the beginning of an id, in any case."""
    show(REPORT, "--trace", "4BF9")

    assert f"trace {SLOWEST}" in capsys.readouterr().out


@pytest.mark.parametrize(("prefix", "message"), [("ff", "no trace id starts so"), ("0000", "2 trace ids start so")])
def test_trace_that_is_not_one_is_a_usage_error(prefix, message):
    """An unknown or ambiguous id is answered with exit code 2."""
    with pytest.raises(CommandError, match=message) as caught:
        show(REPORT, "--trace", prefix)

    assert 2 == caught.value.exit_code


def test_all_shows_every_trace_and_list_names_them(capsys):
    """--all prints each waterfall, --list one line each, both slowest first."""
    show(REPORT, "--all")
    waterfalls = re.findall(r"^trace (\w{32})", capsys.readouterr().out, re.MULTILINE)
    show(REPORT, "--list")
    listed = re.findall(r"^(\w{12}) ", capsys.readouterr().out, re.MULTILINE)

    assert 3 == len(listed)
    assert SLOWEST.startswith(listed[0])
    assert listed == [trace_id[:12] for trace_id in waterfalls]


def test_bad_file_is_a_command_error_with_file_and_line(tmp_path):
    """Bad input is exit code 1 and a message that names file and line."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text(REPORT.read_text() + "oops\n")
    with pytest.raises(CommandError, match=r"bad\.jsonl: line \d+: not JSON") as caught:
        show(bad)

    assert 1 == caught.value.exit_code


@pytest.mark.parametrize("arguments", [["--width", "12"], ["--width", "x"], ["--max-rows", "-1"], ["--all", "--list"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    """Impossible numbers and contradicting options are refused by the parser."""
    with pytest.raises(SystemExit) as caught:
        show(REPORT, *arguments)

    assert 2 == caught.value.code


def test_note_about_the_file_goes_to_stderr(tmp_path, capsys):
    """What was left out of a file is told, and not among the results."""
    cut = tmp_path / "cut.jsonl"
    cut.write_text(REPORT.read_text() + '{"resourceSp')
    show(cut)

    captured = capsys.readouterr()
    assert "cut off" in captured.err
    assert "cut off" not in captured.out


def test_standard_input_is_read_and_a_closed_pipe_is_quiet():
    """`show - | head -1` prints one line and no traceback."""
    command = f"{sys.executable} -c '{SCRIPT}' - --all --no-fold --width 1000 < {REPORT} | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith("GET /report")


def test_broken_pipe_is_quiet(tmp_path):
    """A reader that is gone before the output is written causes neither a traceback nor a failure."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", SCRIPT, str(REPORT)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)

    assert (0, "") == (done.returncode, done.stderr)


def test_output_that_cannot_do_unicode_gets_ascii():
    """The encoding of standard output decides over the glyphs."""
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(REPORT)], capture_output=True, check=True, env=env)

    assert done.stdout.isascii()
    assert b"`-render chart" in done.stdout


def terminal_output(env):
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(REPORT)], stdout=follower, env={**os.environ, **env})
    os.close(follower)
    out = b""
    try:
        while chunk := os.read(leader, 65536):
            out += chunk
    except OSError:  # EIO is how a terminal's end is told
        pass
    os.close(leader)
    process.wait()
    return out.decode()


def test_terminal_gets_colours_and_its_own_width():
    """On a terminal the waterfall has its width and colours; NO_COLOR takes the colours only."""
    env = {"TERM": "xterm-256color", "COLUMNS": "72", "NO_COLOR": ""}
    coloured, plain = terminal_output(env), terminal_output({**env, "NO_COLOR": "1"})

    assert "\x1b[38;5;208m" in coloured
    assert "\x1b" not in plain
    assert 72 == max(len(line) for line in plain.splitlines())


def test_help_is_the_class_docstring_and_every_option_has_help():
    """The command follows the protocol of the command line: name, docstring, described options."""
    parser = argparse.ArgumentParser()
    ShowCommand().prepare_parser(parser)

    assert "show" == ShowCommand.name
    assert "waterfall" in ShowCommand.__doc__
    assert all(action.help for action in parser._actions)
