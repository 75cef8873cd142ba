# SPDX-License-Identifier: Apache-2.0
"""What the tests of configs share: an object with records of every kind, compiled once."""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

from ebpftrace.cli.build import BuildCommand
from ebpftrace.config.check import check_program
from ebpftrace.config.files import ProgramFiles

DATA = Path(__file__).parent.parent / "data"
SOURCE = DATA / "records.bpf.c"


def run(command, *arguments):
    """Run a sub-command as the command line would."""
    parser = argparse.ArgumentParser()
    command.prepare_parser(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def compile_records(output, *arguments):
    """Compile records.bpf.c."""
    run(BuildCommand(), SOURCE, "-o", output, "--werror", *arguments)
    return output


@functools.cache
def records():
    """The bytes of records.bpf.o."""
    with tempfile.TemporaryDirectory() as folder:
        return compile_records(Path(folder, "records.bpf.o")).read_bytes()


def check_text(folder, text, data=None):
    """The report on a YAML text and an object."""
    yaml, compiled = folder / "records-trace.yaml", folder / "records-trace.bpf.o"
    yaml.write_text(text)
    compiled.write_bytes(records() if data is None else data)
    return check_program(ProgramFiles("records-trace", yaml, compiled))
