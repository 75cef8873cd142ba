# SPDX-License-Identifier: Apache-2.0
"""The program `exec`: every binary that a traced span starts is a span."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from harness import App, below, kernel, named, run
from machine import until

SHELL = shutil.which("dash") or "/bin/sh"
TRUE = shutil.which("true")


def commands(*lines):
    """Run command lines, one after another, in one traced span."""
    app = App()
    with app.traced("job", "exec"):
        codes = [subprocess.run(line, check=False, stdin=subprocess.DEVNULL).returncode for line in lines]
    return {"codes": codes, "spans": app.spans()}


def started(*lines):
    """The spans of what ran below the span "job"."""
    found = run(commands, *lines).value["spans"]
    return [span for span in kernel(found, "exec") if span["trace"] == named(found, "job")["trace"]], found


def test_one_binary():
    """A binary is a span under the span that started it: its path, arguments, process and exit code."""
    [span], spans = started([TRUE, "one", "two"])
    attributes = span["attributes"]

    assert named(spans, "job")["id"] == span["parent"]
    assert "exec true" == span["name"]
    assert TRUE == attributes["process.executable.path"]
    assert [TRUE, "one", "two"] == attributes["process.command_args"]
    assert 0 == attributes["process.exit.code"]
    assert 0 == attributes["ebpftrace.exec.chain"]
    assert span["error"] is None


def test_duration():
    """A binary's span is as long as it ran."""
    [span], spans = started(["sleep", "0.2"])

    assert 200_000_000 <= span["wall"] <= named(spans, "job")["wall"]


def test_exit_code():
    """An exit code that is not 0 is an attribute and an error."""
    [span], _ = started([SHELL, "-c", "exit 3"])

    assert 3 == span["attributes"]["process.exit.code"]
    assert "exit code 3" == span["error"]


def test_killed():
    """A binary that a signal ended has no exit code; the error says which signal."""
    [span], _ = started([SHELL, "-c", "kill -9 $$"])

    assert "process.exit.code" not in span["attributes"]
    assert "killed by SIGKILL" == span["error"]


def test_tree():
    """What a shell starts is below the shell."""
    spans, everything = started([SHELL, "-c", f"{TRUE} a; {TRUE} b; exit 0"])
    shell = next(span for span in spans if span["name"] == f"exec {Path(SHELL).name}")

    assert named(everything, "job")["id"] == shell["parent"]
    assert [shell["id"]] * 2 == [span["parent"] for span in spans if span["name"] == "exec true"]
    assert [["a"], ["b"]] == [
        span["attributes"]["process.command_args"][1:]
        for span in sorted(spans, key=lambda span: span["start"])
        if span["name"] == "exec true"
    ]


def test_chain():
    """A process that execs again and again is one span for each binary, numbered; only the last one has an exit."""
    spans, _ = started([SHELL, "-c", f"exec env {TRUE}"])
    chain = sorted(spans, key=lambda span: span["attributes"]["ebpftrace.exec.chain"])

    assert [0, 1, 2] == [span["attributes"]["ebpftrace.exec.chain"] for span in chain]
    assert [f"exec {Path(SHELL).name}", "exec env", "exec true"] == [span["name"] for span in chain]
    assert [None, None, 0] == [span["attributes"].get("process.exit.code") for span in chain]
    assert 1 == len({span["attributes"]["process.pid"] for span in chain})
    assert chain[0]["end"] == chain[1]["start"]
    assert chain[1]["end"] == chain[2]["start"]


def test_long_arguments():
    """Arguments are cut at a fixed size; another attribute tells how long they were."""
    [span], _ = started([TRUE, "x" * 100_000])
    arguments = span["attributes"]["process.command_args"]

    assert TRUE == arguments[0]
    assert set("x") == set(arguments[1])
    assert len("".join(arguments)) <= 512
    assert len(TRUE) + 100_002 == span["attributes"]["ebpftrace.exec.args_size"]


def test_arguments_do_not_mix():
    """A short command line after a long one in the same process shows nothing of the long one."""
    spans, _ = started([SHELL, "-c", f"exec {TRUE} short", "a-long-argument" * 20])
    last = next(span for span in spans if span["name"] == "exec true")

    assert [TRUE, "short"] == last["attributes"]["process.command_args"]


def strange_bytes():
    """Arguments that are no UTF-8, and an empty one."""
    app = App()
    with app.traced("job", "exec"):
        subprocess.run([TRUE, b"\xff\xfe", b"", b"caf\xc3\xa9"], check=True)
    return kernel(app.spans(), "exec")


def test_strange_bytes():
    """Arguments that are not text are shown as far as they are; empty ones in the middle stay."""
    [span] = run(strange_bytes).value

    assert [TRUE, "\ufffd\ufffd", "", "café"] == span["attributes"]["process.command_args"]


def other_shell(directory):
    """A shell of another name in another place."""
    copy = shutil.copy(SHELL, f"{directory}/my-shell")
    app = App()
    with app.traced("job", "exec"):
        subprocess.run([copy, "-c", f"{TRUE}; exit 0"], check=True)
    return kernel(app.spans(), "exec")


def test_binary_anywhere(tmp_path):
    """No path is special: a copy of a shell elsewhere is traced like any other."""
    spans = run(other_shell, str(tmp_path)).value

    assert f"{tmp_path}/my-shell" == named(spans, "exec my-shell")["attributes"]["process.executable.path"]
    assert named(spans, "exec my-shell")["id"] == named(spans, "exec true")["parent"]


def test_threads_are_not_processes():
    """Threads that end do not end their process's span."""
    code = (
        "import threading, time\n"
        "for _ in range(5):\n    t = threading.Thread(target=time.sleep, args=(0.01,)); t.start(); t.join()\n"
        "time.sleep(0.1)\nraise SystemExit(4)"
    )
    [span], _ = started([sys.executable, "-c", code])

    assert span["wall"] >= 150_000_000
    assert 4 == span["attributes"]["process.exit.code"]


def test_exec_in_a_thread():
    """A thread that execs ends the others and goes on as the same process."""
    code = (
        "import os, threading, time\n"
        f"threading.Thread(target=os.execv, args=({TRUE!r}, ['true', 'from a thread'])).start()\ntime.sleep(5)"
    )
    spans, _ = started([sys.executable, "-c", code])
    first, second = sorted(spans, key=lambda span: span["start"])

    assert "exec true" == second["name"]
    assert first["attributes"]["process.pid"] == second["attributes"]["process.pid"]
    assert (1, 0) == (second["attributes"]["ebpftrace.exec.chain"], second["attributes"]["process.exit.code"])


def ways():
    """Other ways to start a process than subprocess's."""
    app = App()
    with app.traced("posix_spawn", "exec"):
        os.waitpid(os.posix_spawn(TRUE, [TRUE, "posix_spawn"], {}), 0)
    with app.traced("fork", "exec"):
        pid = os.fork()
        if pid == 0:
            os.execv(TRUE, [TRUE, "fork"])
        os.waitpid(pid, 0)
    with app.traced("system", "exec"):
        os.system(f"{TRUE} system")
    with app.span("untraced"):
        subprocess.run([TRUE, "untraced"], check=True)
    return app.spans()


def test_every_way_to_start():
    """posix_spawn, fork and exec, and system(3) are all seen; a span that did not enable the program sees nothing."""
    spans = run(ways).value

    for name in ("posix_spawn", "fork"):
        [found] = below(spans, named(spans, name))
        assert name == found["attributes"]["process.command_args"][1]
    assert below(spans, named(spans, "system"))
    assert "untraced" not in {
        argument for span in kernel(spans) for argument in span["attributes"]["process.command_args"]
    }


def outliving():
    """A child that ends after the span that started it."""
    app = App()
    with app.traced("job", "exec"):
        process = subprocess.Popen(["sleep", "0.2"])
    process.wait()
    until(lambda: kernel(app.spans()))
    return app.spans()


def test_child_that_outlives_the_span():
    """A process is the span's that started it, even when it ends long after."""
    spans = run(outliving).value
    [found] = below(spans, named(spans, "job"))

    assert found["end"] > named(spans, "job")["end"]


def roots(by):
    """Binaries that are configured as roots, started where nothing is traced."""
    shell = SHELL if by == "path" else Path(SHELL).name
    app = App(exec_roots=[shell])
    subprocess.run([SHELL, "-c", f"{TRUE}; exit 0"], check=True)
    subprocess.run([TRUE], check=True)
    with app.traced("job", "exec"):
        subprocess.run([SHELL, "-c", "exit 0"], check=True)
    return app.spans()


def test_roots():
    """A configured binary, by path or by name, starts a trace of its own; what it starts is below it."""
    for by in ("path", "name"):
        spans = run(roots, by).value
        job = named(spans, "job")
        mine = [span for span in kernel(spans) if span["trace"] != job["trace"]]
        root, child = sorted(mine, key=lambda span: span["start"])

        assert root["parent"] is None
        assert int(root["trace"], 16)
        assert (root["trace"], root["id"]) == (child["trace"], child["parent"])
        assert [job["id"]] == [span["parent"] for span in kernel(spans) if span["trace"] == job["trace"]]


def crowd():
    """Many processes from many threads at once."""
    app = App()

    def work(number):
        with app.traced(str(number), "exec"):
            for _ in range(10):
                subprocess.run([TRUE, str(number)], check=True)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.05)
    return {"spans": app.spans(), "stats": app.session.stats()["programs"]["exec"]}


def test_crowd():
    """Processes that threads start at the same time each come under their own thread's span, and none is lost."""
    found = run(crowd).value

    for number in range(6):
        arguments = [
            span["attributes"]["process.command_args"][1]
            for span in below(found["spans"], named(found["spans"], str(number)))
        ]
        assert [str(number)] * 10 == arguments
    assert {"ring_full": 0, "map_full": 0, "limit": 0} == found["stats"]["dropped"]


def long_root(directory):
    """Two roots given by name, the longer than the kernel's 15 bytes; and a binary that is none."""
    names = ["short", "a-name-longer-than-15", "another-name-longer-than-15"]
    app = App(exec_roots=names[:2])
    for name in names:
        subprocess.run([shutil.copy(TRUE, Path(directory) / name)], check=True)
    return [span["name"] for span in app.spans()]


def test_long_root(tmp_path):
    """A root given by a name that the kernel cuts off at 15 bytes matches all the same."""
    assert ["exec short", "exec a-name-longer-than-15"] == run(long_root, str(tmp_path)).value
