# SPDX-License-Identifier: Apache-2.0
"""What a run left behind, read back: of one kernel."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field

from vmtest import selection

_RUNNING = re.compile(r"^(\S*tests/\S+::.+?)(?P<outcome> (?:PASSED|FAILED|ERROR|SKIPPED|XFAIL).*)?$")


@dataclass(frozen=True, slots=True)
class Test:
    """One test's outcome.

    Args:
        module, name: of it.
        outcome: "passed", "failed" or "skipped".
        reason: first line of what it says, for the last two.
        seconds: it took.
    """

    module: str
    name: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0

    @property
    def about(self):
        """The program."""
        return selection.about(self.module)


@dataclass(slots=True)
class Result:
    """Of one kernel.

    Args:
        series, release: of it.
        error: why it was not all run; "" when it was.
        doctor, programs, demos: what the guest wrote, see guest.py.
        tests: all.
        seconds: of the whole.
    """

    series: str
    release: str
    error: str = ""
    doctor: dict = field(default_factory=dict)
    programs: dict = field(default_factory=dict)
    demos: dict = field(default_factory=dict)
    tests: list = field(default_factory=list)
    seconds: float = 0.0

    def count(self, outcome, about=None):
        """How many tests had that outcome, of one program or of all."""
        return sum(test.outcome == outcome and about in (None, test.about) for test in self.tests)

    def problems(self):
        """Everything that is wrong, each in words that begin with the kernel and the program."""
        found = [self.error] if self.error else []
        where = f"kernel {self.series}"
        if self.doctor.get("error"):
            found.append(f"{where}: ebpftrace doctor: {self.doctor['error']}")
        for name, variants in self.programs.items():
            for variant, facts in variants.items():
                if facts["error"]:
                    lines = "".join(f"\n  | {line}" for line in facts["log"].splitlines())
                    found.append(f"{where}: the program {name} {variant}: {facts['error']}{lines}")
        found += [
            f"{where}: {test.about}: {test.module}.py::{test.name}: {test.reason}"
            for test in self.tests
            if test.outcome == "failed"
        ]
        for name, demo in self.demos.items():
            if demo["code"]:
                lines = "".join(f"\n  | {line}" for line in demo["tail"].splitlines())
                found.append(f"{where}: the demo {name} ended with {demo['code']}{lines}")
        return found


def read(series, release, directory):
    """What there is of a kernel's results; a step that was not reached has left nothing."""
    result = Result(series, release)
    for name in ("doctor", "programs", "demos"):
        setattr(result, name, _json(directory / f"{name}.json"))
    result.tests = parse_junit(directory / "junit.xml")
    return result


def keep(result, directory):
    """Write down what the guest's own files do not say."""
    facts = {"release": result.release, "error": result.error, "seconds": round(result.seconds, 1)}
    (directory / "run.json").write_text(json.dumps(facts))


def collect(directory):
    """The results of earlier runs, one kernel a directory."""
    found = []
    for path in sorted(directory.glob("*/run.json")):
        facts = _json(path)
        result = read(path.parent.name, facts.get("release", "?"), path.parent)
        result.error, result.seconds = facts.get("error", ""), facts.get("seconds", 0.0)
        found.append(result)
    return found


def _json(path):
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        return {"error": f"{path.name} cannot be read: {error}"}
    return found if isinstance(found, dict) else {"error": f"{path.name} holds no object"}


def parse_junit(path):
    """The tests in a JUnit file; none when it is not there or cut off."""
    try:
        root = ET.parse(path).getroot()
    except (FileNotFoundError, ET.ParseError):
        return []
    return [_test(case) for case in root.iter("testcase")]


def _test(case):
    outcome, reason = "passed", ""
    for child in case:
        if child.tag in ("failure", "error"):
            outcome, reason = "failed", child.get("message", "")
        elif child.tag == "skipped" and outcome == "passed":
            outcome, reason = "skipped", child.get("message", "")
    module = case.get("classname", "").rpartition(".")[2]
    reason = reason.strip().partition("\n")[0]
    return Test(module, case.get("name", ""), outcome, reason, float(case.get("time", 0)))


def last_started(lines):
    """The test that ran when a guest's output ended; "" when none did."""
    running = ""
    for line in lines:
        match = _RUNNING.match(line)
        if match:
            running = "" if match["outcome"] else match[1].strip()
    return running
