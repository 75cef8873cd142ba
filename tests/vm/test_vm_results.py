# SPDX-License-Identifier: Apache-2.0
"""What a guest leaves behind is read back, whole or not, and becomes the page and the exit code."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from vmtest import cli, guest, image, matrix, results, selection, vm
from vmtest.errors import VmError

TESTS = Path(__file__).parents[1]

JUNIT = """\
<testsuites><testsuite>
<testcase classname="tests.kernel.test_kernel_exec" name="test_tree" time="1.5"/>
<testcase classname="tests.kernel.test_kernel_sock" name="test_udp[2]" time="2">
<failure message="assert 1 == 2&#10;x"/></testcase>
<testcase classname="tests.kernel.test_kernel_sock" name="test_udp[10]" time="2">
<error message="failed on teardown"/></testcase>
<testcase classname="tests.kernel.test_kernel_breakdown" name="test_a" time="0">
<skipped message="one CPU only"/></testcase>
</testsuite></testsuites>
"""

LOADED = {
    "error": "",
    "log": "",
    "hooks": {"tp_btf/a": "", "tp_btf/gone": "no such", "fentry/f": ""},
    "extras": ["fentry/f"],
}
REFUSED = {
    "error": "cannot load sock: EINVAL",
    "log": "R1 invalid mem access\nprocessed 7 insns",
    "hooks": {"tp_btf/a": ""},
    "extras": [],
}


@pytest.fixture
def directory(tmp_path):
    """A guest's files, all there."""
    (tmp_path / "junit.xml").write_text(JUNIT)
    (tmp_path / "doctor.json").write_text(
        json.dumps({"usable": True, "features": [{"name": "fentry", "available": True, "detail": "x"}]})
    )
    facts = {"exec": {"with extras": LOADED, "without": LOADED}, "sock": {"with extras": REFUSED, "without": LOADED}}
    (tmp_path / "programs.json").write_text(json.dumps(facts))
    (tmp_path / "demos.json").write_text(json.dumps({"sock": {"code": 1, "tries": 2, "tail": "no spans"}}))
    return tmp_path


def test_junit(directory):
    """Outcomes, programs and first lines of reasons are read from JUnit's file."""
    tests = results.read("6.1", "6.1.0", directory).tests

    assert [
        ("exec", "test_tree", "passed", ""),
        ("sock", "test_udp[2]", "failed", "assert 1 == 2"),
        ("sock", "test_udp[10]", "failed", "failed on teardown"),
        ("sched", "test_a", "skipped", "one CPU only"),
    ] == [(test.about, test.name, test.outcome, test.reason) for test in tests]


def test_nothing_there(tmp_path):
    """A guest that died early has no results, which is no error of reading."""
    result = results.read("6.1", "6.1.0", tmp_path)

    assert ({}, {}, []) == (result.doctor, result.programs, result.tests)


@pytest.mark.parametrize("text", ["", JUNIT[:200], "no XML"])
def test_cut_off(tmp_path, text):
    """A file that was not written to its end holds no tests."""
    (tmp_path / "junit.xml").write_text(text)

    assert [] == results.parse_junit(tmp_path / "junit.xml")


def test_problems(directory):
    """Each problem begins with the kernel and says which program; a refused one with the verifier's last lines."""
    problems = results.read("6.1", "6.1.0", directory).problems()

    assert "kernel 6.1: the program sock with extras: cannot load sock: EINVAL" in problems[0]
    assert problems[0].endswith("  | R1 invalid mem access\n  | processed 7 insns")
    assert "kernel 6.1: sock: test_kernel_sock.py::test_udp[2]: assert 1 == 2" in problems
    assert "kernel 6.1: the demo sock ended with 1\n  | no spans" == problems[-1]


def test_unreadable(directory):
    """A file that is no JSON is told."""
    (directory / "doctor.json").write_text("Segmentation fault")

    assert any("doctor.json cannot be read" in problem for problem in results.read("6.1", "x", directory).problems())


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["collecting", "tests/kernel/test_a.py::test_one PASSED  [ 5%]", "tests/kernel/test_a.py::test_two[x y] "],
            "test_two",
        ),
        (["tests/kernel/test_a.py::test_one PASSED  [ 5%]"], ""),
        (["tests/kernel/test_a.py::test_one SKIPPED (why)"], ""),
        ([], ""),
    ],
)
def test_last_started(lines, expected):
    """The test that ran when the guest died is the one without an outcome."""
    assert expected in results.last_started(lines)
    assert bool(expected) == bool(results.last_started(lines))


def test_page(directory):
    """The page has a row for each kernel and program, hooks with reasons, and what failed or was skipped."""
    other = results.Result("5.10", "5.10.0-1", error="kernel 5.10: the guest ended before its command did")
    page = matrix.page([results.read("6.1", "6.1.0-56", directory), other])

    assert page.index("| 5.10 |") < page.index("| 6.1 |")
    assert "| 6.1 | `6.1.0-56` | 1 | 2 | 1 | yes |" in page
    assert "| 6.1 | exec | 1 | 1 | `tp_btf/gone` | 1 | — | — | — |" in page
    assert "| 6.1 | sock | not loaded | 1 |" not in page
    assert "| 6.1 | sock | not loaded | — | — | — | 2 | — | exit code 1 |" in page
    assert "| `tp_btf/gone` | no (1) |" in page
    assert "1. no such" in page
    assert "- kernel 5.10: the guest ended before its command did" in page
    assert "- 6.1: sched: `test_kernel_breakdown.py::test_a`: one CPU only" in page


def test_page_of_a_refused_program(directory):
    """A program that a kernel cannot have has the reason in place of its hooks, once, and that is no problem."""
    facts = {"error": "", "log": "", "hooks": {"tp_btf/a": "no storage", "tp_btf/b": "no storage"}, "extras": []}
    (directory / "programs.json").write_text(json.dumps({"sock": {"with extras": facts, "without": facts}}))
    (directory / "demos.json").write_text(json.dumps({"sock": {"code": 0, "tail": "", "skipped": "no storage"}}))
    result = results.read("5.10", "5.10.0-1", directory)
    result.tests = []

    assert [] == result.problems()
    assert "| 5.10 | sock | 0 | — | all: no storage | — | — | — | — |" in matrix.page([result])


def test_page_of_bcc(directory):
    """Each test with BCC has a row, each kernel a column."""
    one, other = (results.read(series, series, directory) for series in ("6.1", "6.12"))
    one.tests.append(results.Test("test_bcc", "test_tcplife", "passed"))
    one.tests.append(results.Test("test_bcc", "test_header", "passed"))
    other.tests.append(results.Test("test_bcc", "test_tcplife", "skipped", "BCC's own"))
    page = matrix.page([one, other])

    assert "| test | 6.1 | 6.12 |" in page
    assert "| `test_bcc.py::test_tcplife` | passed | skipped |" in page
    assert "| `test_bcc.py::test_header` | passed | — |" in page
    assert "- 6.12: BCC: `test_bcc.py::test_tcplife`: BCC's own" in page


@pytest.mark.parametrize(
    ("hooks", "reason"),
    [
        ({"tp_btf/a": "no storage", "tp_btf/b": "no storage", "fentry/f": ""}, "no storage"),
        ({"tp_btf/a": "no tracepoint a", "tp_btf/b": "", "fentry/f": ""}, ""),
    ],
)
def test_refused_demo(tmp_path, hooks, reason):
    """In the guest, the demo of a program that has none of its hooks is left out; extras do not count."""
    facts = {"error": "", "log": "", "hooks": hooks, "extras": ["fentry/f"]}
    (tmp_path / "programs.json").write_text(json.dumps({"sock": {"with extras": facts, "without": facts}}))

    assert reason == guest.refused(tmp_path, "sock")


def test_table_escapes():
    """A bar or a line end in a cell does not break the table."""
    assert "| a\\|b c |" in matrix.table(["x"], [["a|b\nc"]])


# --- the command -----------------------------------------------------------------------------


@pytest.fixture
def run_kernel(tmp_path, monkeypatch, directory):
    """Returns a function that runs one kernel whose guest writes `lines`, then ends by `end()`."""
    monkeypatch.setattr(cli, "BUILD", tmp_path / "build")

    def run(end, lines=(), timeout=1500):
        def guest(kernel, command, place, *, timeout_s, tell):
            for line in lines:
                tell(line)
            for path in directory.glob("*.*"):
                (place / path.name).write_bytes(path.read_bytes())
            return end()

        monkeypatch.setattr(vm, "run", guest)
        return cli.run_kernel(
            image.Image("6.1", "6.1.0-56", tmp_path, tmp_path), cli.parse(["--timeout", str(timeout)])
        )

    return run


def test_panic_in_a_test(run_kernel):
    """A guest that dies says which test ran; what was written before counts."""

    def end():
        raise VmError("kernel 6.1: the guest ended before its command did", tail="Kernel panic")

    found = run_kernel(end, ["tests/kernel/test_kernel_sock.py::test_congestion "])

    assert "Kernel panic" in found.error
    assert "while this ran: tests/kernel/test_kernel_sock.py::test_congestion" in found.error
    assert 4 == len(found.tests)


def no_boot():
    raise VmError("kernel 6.1: it did not boot within 120 s", tail="stuck", again=True)


def test_boot_that_fails_once(run_kernel, capsys):
    """A guest that does not boot is started once more, and both are told; what the second does counts."""
    ends = iter([no_boot, lambda: 0])

    def end():
        return next(ends)()

    found = run_kernel(end)

    assert "" == found.error
    assert 4 == len(found.tests)
    assert "vm: once more, for: kernel 6.1: it did not boot within 120 s" in capsys.readouterr().out


def test_boot_that_fails_twice(run_kernel):
    """A guest that does not boot the second time either is a problem."""
    tries = []

    def end():
        tries.append(1)
        no_boot()

    found = run_kernel(end)

    assert 2 == len(tries)
    assert "it did not boot" in found.error


@pytest.mark.parametrize("timeout", [1500, 60])
def test_no_second_time(run_kernel, timeout):
    """There is no second time for tests that took too long, and none when no time is left for a boot."""
    tries = []

    def end():
        tries.append(1)
        raise VmError("kernel 6.1: it ended", again=timeout == 60)

    found = run_kernel(end, timeout=timeout)

    assert 1 == len(tries)
    assert "it ended" in found.error


def test_broken_guest(run_kernel):
    """A step that fails in the guest is told with its last lines."""
    found = run_kernel(lambda: 3, ["vm: step tests", "ImportError: nothing works"])

    assert "kernel 6.1: the run in the guest ended with 3" in found.error
    assert "ImportError: nothing works" in found.error


@pytest.mark.parametrize("broken", [False, True])
def test_exit_codes(capsys, tmp_path, broken):
    """The exit code is 1 when anything is wrong, and the words say what."""
    tests = [results.Test("test_kernel_exec", "test_tree", "failed" if broken else "passed", "assert 1 == 2")]
    code = cli.finish([results.Result("6.1", "6.1.0", tests=tests)], tmp_path / "page.md")

    assert int(broken) == code
    assert broken == ("kernel 6.1: exec: test_kernel_exec.py::test_tree: assert 1 == 2" in capsys.readouterr().out)


def test_collect(run_kernel):
    """Results of earlier runs can be put on one page, with how they ended."""

    def end():
        raise VmError("kernel 6.1: it did not boot")

    run = run_kernel(end)
    [found] = results.collect(cli.BUILD / "results")

    assert ("6.1", "6.1.0-56", "kernel 6.1: it did not boot") == (found.series, found.release, found.error)
    assert run.tests == found.tests


def test_cannot_begin(monkeypatch, capsys):
    """What stands in the way of all kernels is one message, and the exit code is 2."""

    def refuse():
        raise VmError("missing (Debian's names): qemu-system-x86")

    monkeypatch.setattr(vm, "require_tools", refuse)

    assert 2 == cli.main(["6.1"])
    assert "test-vm: missing (Debian's names): qemu-system-x86" in capsys.readouterr().err


def test_no_tests_is_no_success(tmp_path, run_kernel, directory):
    """A guest that ran no tests at all, though it ended well, is a problem."""
    (directory / "junit.xml").unlink()

    assert "no tests were run" in run_kernel(lambda: 0).error


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--timeout", "-1"], ["--timeout", "soon"]])
def test_wrong_arguments(arguments):
    """Wrong arguments are refused."""
    with pytest.raises(SystemExit):
        cli.parse(arguments)


def test_kernels_by_make():
    """Several series in one word, as make gives them, are several."""
    assert ["6.1", "6.12"] == cli.parse(["6.1 6.12"]).kernels


# --- the selection ------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [*selection.GROUPS, *selection.QUICK], ids=lambda group: group.module)
def test_selected_tests_exist(group):
    """Each test that is named is there under that name."""
    tree = ast.parse((TESTS / group.directory / f"{group.module}.py").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}

    assert set(group.tests) <= functions
    assert any(name.startswith("test_") for name in functions)


def test_all_of_bcc():
    """Each module of tests with BCC is in the selection by itself."""
    modules = {path.stem for path in (TESTS / "bpfcc").glob("test_*.py")}

    assert modules
    assert modules == {group.module for group in selection.GROUPS if group.about == selection.BCC}


def test_quick():
    """The quick selection has a test of each program, and of BCC."""
    assert {group.about for group in selection.GROUPS} == {group.about for group in selection.QUICK}
    assert len(selection.arguments(quick=True)) < len(selection.arguments()) / 3


@pytest.mark.parametrize("quick", [True, False])
def test_what_the_guest_is_given(tmp_path, monkeypatch, quick):
    """`--quick` runs the quick selection, and no demos."""
    given = []
    monkeypatch.setattr(cli, "BUILD", tmp_path)
    monkeypatch.setattr(vm, "run", lambda _, command, *args, **options: given.append(command) or 0)
    cli.run_kernel(image.Image("6.1", "6.1.0-56", tmp_path, tmp_path), cli.parse(["--quick"] if quick else []))
    tests, _, demos = given[0].partition(" --tests ")[2].partition("--demos")

    assert selection.arguments(quick=quick) == tests.split()
    assert ([] if quick else list(selection.DEMOS)) == demos.split()
