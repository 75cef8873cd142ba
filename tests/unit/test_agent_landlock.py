# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from ebpftrace.agent import landlock
from ebpftrace.errors import UnsupportedError

ABI, REASON = landlock.probe()

# Runs in a process of its own, for there is no way back: tries things and prints what became of each.
PRELUDE = """
import json, logging, os, signal, socket, subprocess, sys, threading
from ebpftrace.agent import landlock
results = {}
def attempt(name, action):
    try:
        action()
        results[name] = "ok"
    except OSError as error:
        results[name] = os.strerror(error.errno)
def connect(port):
    socket.create_connection(("127.0.0.1", port), 2).close()
"""


@pytest.fixture
def landlocked():
    """Skip where the kernel has no Landlock."""
    if not ABI:
        pytest.skip(REASON)


def confined(body, *args):
    """What `body` found out in a new process."""
    code = PRELUDE + "args = json.loads(sys.argv[1])\n" + body + "\nprint(json.dumps(results))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, json.dumps(args)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_files(landlocked, tmp_path):
    """What is not the system's or named can be neither read nor written; it can be listed: libbpf opens "/"."""
    for name in ("secret", "config", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    results = confined(
        """
secret, config, out = args
landlock.restrict([out], read=[config])
attempt("read secret", lambda: open(secret + "/file"))
attempt("list secret", lambda: os.listdir(secret))
attempt("read config", lambda: open(config + "/file"))
attempt("write config", lambda: open(config + "/file", "w"))
attempt("write out", lambda: open(out + "/new", "w"))
attempt("remove out", lambda: os.remove(out + "/file"))
attempt("read /proc", lambda: open("/proc/self/status").read())
attempt("list /sys", lambda: os.listdir("/sys/kernel"))
attempt("write /proc", lambda: open("/proc/self/comm", "w"))
attempt("run", lambda: subprocess.run(["/bin/true"]))
import decimal, xml.dom.minidom
attempt("new thread", lambda: None)
thread = threading.Thread(target=lambda: attempt("read secret in a thread", lambda: open(secret + "/file")))
thread.start(); thread.join()
""",
        *(str(tmp_path / name) for name in ("secret", "config", "out")),
    )
    denied = os.strerror(13)

    assert {
        "read secret": denied,
        "list secret": "ok",
        "read config": "ok",
        "write config": denied,
        "write out": "ok",
        "remove out": "ok",
        "read /proc": "ok",
        "list /sys": "ok",
        "write /proc": denied,
        "run": denied,
        "new thread": "ok",
        "read secret in a thread": denied,
    } == results


def test_new_output_file(landlocked, tmp_path):
    """A file to be written that does not exist can be made."""
    results = confined(
        'landlock.restrict([args[0]])\nattempt("make", lambda: open(args[0], "w"))', str(tmp_path / "trace.jsonl")
    )

    assert {"make": "ok"} == results


@pytest.mark.skipif(ABI < 4, reason=f"Landlock interface {ABI} knows no ports; {REASON}")
def test_ports(landlocked):
    """TCP goes to the exporter's port only, and listens nowhere; a socket that listened before does."""
    with socket.create_server(("127.0.0.1", 0)) as exporter, socket.create_server(("127.0.0.1", 0)) as other:
        results = confined(
            """
exporter, other = args
before = socket.create_server(("127.0.0.1", 0))
landlock.restrict(connect_ports=[exporter])
attempt("exporter", lambda: connect(exporter))
attempt("other", lambda: connect(other))
attempt("listen", lambda: socket.create_server(("127.0.0.1", 0)))
attempt("datagram", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", other)))
attempt("listening still", lambda: before.getsockname() and before.listen())
""",
            exporter.getsockname()[1],
            other.getsockname()[1],
        )

    assert {
        "exporter": "ok",
        "other": os.strerror(13),
        "listen": os.strerror(13),
        "datagram": "ok",
        "listening still": "ok",
    } == results


@pytest.mark.skipif(ABI < 4, reason=f"Landlock interface {ABI} knows no ports; {REASON}")
def test_any_port(landlocked):
    """Where the exporter's port is not known, connecting is left free; ports to listen on can be named."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        results = confined(
            """
landlock.restrict(bind_ports=[0])
attempt("connect", lambda: connect(args[0]))
attempt("listen", lambda: socket.create_server(("127.0.0.1", 0)))
""",
            other.getsockname()[1],
        )

    assert {"connect": "ok", "listen": "ok"} == results


@pytest.mark.skipif(ABI < 6, reason=f"Landlock interface {ABI} has no scopes; {REASON}")
def test_signals_and_names(landlocked):
    """No other process is signalled; the abstract name space is closed unless the service manager is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0ebpftrace-test-landlock")
        body = """
landlock.restrict(abstract_sockets=args[1])
attempt("signal", lambda: os.kill(args[0], 0))
attempt("notify", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).connect("\\0ebpftrace-test-landlock"))
"""
        closed, left_open = (confined(body, os.getpid(), abstract) for abstract in (False, True))

    assert {"signal": os.strerror(1), "notify": os.strerror(1)} == closed
    assert {"signal": os.strerror(1), "notify": "ok"} == left_open


def test_report(landlocked):
    """What is in force is returned, and logged as one event."""
    results = confined("""
lines = []
class Keep(logging.Handler):
    def emit(self, record): lines.append([record.getMessage(), record.ebpftrace_fields])
logging.getLogger("ebpftrace").addHandler(Keep()); logging.getLogger("ebpftrace").setLevel("INFO")
made = landlock.restrict(["/tmp"], connect_ports=[4318])
results = {"abi": made.abi, "files": made.files, "lines": lines}
""")

    assert (ABI, True) == (results["abi"], results["files"])
    assert [["confined by Landlock", ABI, "/tmp"]] == [
        [message, values["abi"], values["write"]] for message, values in results["lines"]
    ]


def test_no_landlock(monkeypatch, caplog):
    """A kernel without Landlock is one line with the reason, and nothing is in force."""
    monkeypatch.setattr(landlock, "probe", lambda: (0, "the kernel has no Landlock"))
    made = landlock.restrict()

    assert landlock.Confinement(0, "the kernel has no Landlock") == made
    assert ["not confined by Landlock"] == [record.getMessage() for record in caplog.records]


def test_other_threads(landlocked):
    """With another thread running nothing is confined: that one would stay free."""
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        with pytest.raises(UnsupportedError, match="would stay free"):
            landlock.restrict()
    finally:
        end.set()
        other.join()

    with open(__file__, "rb") as file:  # noqa: PTH123
        assert file.read(1)


@pytest.mark.parametrize(
    ("endpoint", "environ", "expected"),
    [
        ("http://localhost:4318/v1/traces", {}, [4318]),
        ("https://collector.example/v1/traces", {}, [443]),
        ("dns:///collector:4317", {}, [4317]),
        ("collector:4317", {}, [4317]),
        ("[::1]:4317", {}, [4317]),
        ("unix:///run/otel.sock", {}, []),
        ("http://c:4318", {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "x"}, [4318, 3128]),
        ("http://c:4318", {"http_proxy": "proxy"}, None),
        ("collector", {}, None),
        ("http://c:99999", {}, None),
    ],
)
def test_endpoint_ports(endpoint, environ, expected):
    """The ports to connect to are those of the endpoint and of proxies; where one is not said, there is no list."""
    assert expected == landlock.endpoint_ports(endpoint, environ)
