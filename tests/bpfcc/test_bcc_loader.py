# SPDX-License-Identifier: Apache-2.0
"""Programs that BCC loads: by the agent where the kernel has no BTF or there is no object, and from Python."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest
from bcc_spans import spans_of
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import ebpftrace.bcc
from ebpftrace.errors import ConfigError, LoadError

DATA = Path(__file__).parent.parent / "data/bcc"
COMMAND = Path(sys.executable).with_name("ebpftrace")
BTF = "/sys/kernel/btf"
COMPILING_S = 300  # in an emulated machine
HOSTNAME = "/etc/hostname"
PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")

pytestmark = pytest.mark.timeout(600)


def programs_spans(output):
    """The spans of programs, without the agent's own."""
    return [span for span in spans_of(output) if "ebpftrace.program" in span["attributes"]]


@pytest.fixture
def program(tmp_path):
    """A program: its file, and beside it its source for BCC."""
    folder = tmp_path / "programs"
    folder.mkdir()
    shutil.copy(DATA / "opens-trace.bcc.c", folder)
    return Path(shutil.copy(DATA / "opens-trace.yaml", folder))


@pytest.fixture
def no_btf():
    """The prefix of a command that sees no BTF of the kernel, nor the copy that newer headers of Debian's have."""
    hide = f"mount -t tmpfs none {BTF} && for copy in /lib/modules/*/build/vmlinux; do "
    hide += '[ ! -e "$copy" ] || mount --bind /dev/null "$copy"; done && exec "$@"'
    return ["unshare", "-m", "sh", "-c", hide, "sh"]


class Agent:
    """An agent that was started; it says when it is ready."""

    def __init__(self, tmp_path, command):
        self.output, self._log = tmp_path / "spans.jsonl", tmp_path / "log"
        with contextlib.suppress(FileNotFoundError):
            (tmp_path / "notify").unlink()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(tmp_path / "notify"))
        env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "OTEL_TRACES_EXPORTER": "none"}
        command = [*command, "--output", self.output, "--listen", "none"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, env=env, stderr=log)

    def log(self):
        """What it has said."""
        return self._log.read_text()

    def ready(self, word="READY=1"):
        """Wait until it has loaded."""
        deadline = time.monotonic() + COMPILING_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if select.select([self._notify], [], [], 0.2)[0] and word in self._notify.recv(4096).decode().split("\n"):
                return
        raise AssertionError(self.log())

    def end(self):
        """Stop it; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._notify.close()
        return self.process.wait(60)


@contextlib.contextmanager
def agent(tmp_path, *command):
    """An agent that runs within the block."""
    running = Agent(tmp_path, command)
    try:
        running.ready()
        yield running
    finally:
        running.end()


def opened(spans):
    """Spans of the file that tests open."""
    return [span["attributes"] for span in spans if span["attributes"].get("file.path") == HOSTNAME]


def loaded_by_bcc(log):
    """Why BCC loaded, of each time that it did."""
    return re.findall(r"BCC has loaded the program 'opens-trace': (.*)", log)


def test_no_btf(tmp_path, program, no_btf):
    """Without BTF in the kernel, BCC loads a program, and one line says why; a reload may describe it otherwise.

    A program that comes with ebpftrace says that it needs BTF, and the rest of the fleet goes on.
    """
    for name in ("exec-trace.yaml", "exec-trace.bpf.o"):
        shutil.copy(str(files("ebpftrace.programs").joinpath(name)), program.parent)
    chosen = ["--config-dir", program.parent, "--config-names", "exec-trace,opens-trace"]
    with agent(tmp_path, *no_btf, COMMAND, "agent", *chosen, "--set", "opens-trace.marker=8") as daemon:
        subprocess.run(["cat", HOSTNAME], check=True)
        subprocess.run(["head", HOSTNAME], check=True)
        program.write_text(program.read_text().replace("name: open\n", "name: opened\n"))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.ready("RELOADING=1")
        daemon.ready()
        subprocess.run(["cat", HOSTNAME], check=True)
    spans, log = programs_spans(daemon.output), daemon.log()

    [reason] = loaded_by_bcc(log)
    assert f"the kernel has no BTF: {BTF}/vmlinux cannot be read: No such file or directory" in reason
    assert "'exec-trace' does not run: kernel BTF, which exec-trace.bpf.o needs, is not available" in log
    assert ["open", "opened"] == [span["name"] for span in spans if span["attributes"].get("file.path") == HOSTNAME]
    assert {("cat", "8", "opens")} == {
        (each["process.command"], each["marker"], each["ebpftrace.program"]) for each in opened(spans)
    }
    assert 0 == daemon.process.returncode
    assert "lost_in_kernel=0" in log


@pytest.fixture
def perf_events():
    """A kernel that lets CAP_PERFMON open perf events, which Debian's do not by default."""
    before = PARANOID.read_text()
    PARANOID.write_text("2")
    yield
    PARANOID.write_text(before)


def test_no_object(tmp_path, program, perf_events):
    """With BTF, a program without an object is BCC's too; another source is compiled at a reload."""
    with agent(tmp_path, COMMAND, "agent", program) as daemon:
        subprocess.run(["cat", HOSTNAME], check=True)
        source = program.with_name("opens-trace.bcc.c")
        source.write_text(source.read_text().replace("KNOB_marker;", "KNOB_marker + 1;"))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.ready("RELOADING=1")
        daemon.ready()
        subprocess.run(["cat", HOSTNAME], check=True)
        source.write_text(source.read_text().replace("if (opens", "this is no C; if (opens"))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.ready("RELOADING=1")
        daemon.ready()
        subprocess.run(["cat", HOSTNAME], check=True)

    reasons = [line.strip() for line in loaded_by_bcc(daemon.log())]
    assert ["there is no opens-trace.bpf.o"] * 2 == reasons, daemon.log()
    assert ["7", "8", "8"] == [each["marker"] for each in opened(programs_spans(daemon.output))]
    assert "opens-trace.bcc.c: does not compile" in daemon.log()
    assert re.search(r"opens-trace\.bcc\.c:\d+:\d+: error: ", daemon.log())


@pytest.fixture
def provider():
    """An application's provider."""
    provider = TracerProvider()
    provider.kept = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(provider.kept))
    return provider


def test_python(program, provider):
    """From Python, a program is loaded and read by its file alone, and is gone with its reader."""
    with ebpftrace.bcc.load(program, knobs={"marker": 9}, to=provider) as reader:
        subprocess.run(["cat", HOSTNAME], check=True)
        subprocess.run(["head", HOSTNAME], check=True)
    found = [span for span in provider.kept.get_finished_spans() if span.attributes.get("file.path") == HOSTNAME]

    assert [("open", 9, "cat", "opens")] == [
        (span.name, *(span.attributes[key] for key in ("marker", "process.command", "ebpftrace.program")))
        for span in found
    ]
    assert reader.bpf.module is None
    assert {"buffer": 0, "queue": 0} == reader.stats()["lost"]
    assert [] == [link for link in _descriptors() if "bpf" in link]


def _descriptors():
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the directory's own
            links.append(str(entry.readlink()))
    return links


@pytest.mark.parametrize(
    ("changed", "text", "other", "error", "said"),
    [
        ("yaml", "name: path", "name: paht", ConfigError, "struct open_t has no field 'paht': did you mean 'path'"),
        ("bcc.c", "u32 marker", "u33 marker", ConfigError, "does not compile"),
        ("bcc.c", "bpf_probe_read_user_str(&record.path", "*(int *)16 = 1; //", LoadError, "by BCC: Failed to load"),
    ],
)
def test_refused(program, provider, changed, text, other, error, said):  # noqa: PLR0917  (a table)
    """What does not fit is one error that says what, and nothing is left in the kernel."""
    path = program.with_name(f"opens-trace.{changed}")
    assert text in path.read_text()
    path.write_text(path.read_text().replace(text, other))

    with pytest.raises(error) as caught:
        ebpftrace.bcc.load(program, to=provider)

    told = "\n".join((str(caught.value), *getattr(caught.value, "__notes__", ())))
    assert said in told
    if changed == "bcc.c":
        assert "BCC said:" in told
    assert [] == [link for link in _descriptors() if "bpf" in link]
