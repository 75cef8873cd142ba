# SPDX-License-Identifier: Apache-2.0
"""How the agent fares with 200,000 records a second: what is lost, what it costs, how much memory it takes.

A process makes system calls at an even rate, a program submits a number of records of six labels for each of them, the
agent makes spans of these and sends them over OTLP/HTTP to a receiver that counts them. Lost records are those of the
agent's own counters; what was submitted, read, exported and received must be the same number. Then the rate is raised
until something is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from _harness import ROOT, arguments, machine, report, say
from _receiver import Receiver

PROGRAM = ROOT / "tests/data/programs/numbered"
FIRST = 0x40000000
COPIES = 100
RATE = 200_000
STEP = 1.25
EBPFTRACE = [sys.executable, "-m", "ebpftrace.cli.main"]
TICKS = os.sysconf("SC_CLK_TCK")


class Agent:
    """The agent, as a user starts it.

    Args:
        folder: with the program, built.
        endpoint: of the receiver.
    """

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._log = (folder / "log").open("w+b")
        environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        command = [*EBPFTRACE, "agent", "--socket", "", folder / "numbered.yaml"]
        command += ["--set", f"numbered.copies={COPIES}", "--listen", "127.0.0.1:0"]
        self._process = subprocess.Popen(command, stderr=self._log, env=environment)
        self._port = self._wait_for_port()

    def _wait_for_port(self) -> int:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            for line in Path(self._log.name).read_text().splitlines():
                if "metrics are served" in line:
                    return int(line.partition("port=")[2].split()[0])
            time.sleep(0.05)
        sys.exit(f"the agent did not start:\n{Path(self._log.name).read_text()}")

    def counters(self) -> dict[str, int]:
        """Return what its metrics say: records read, and everything that was lost."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        found = {"records": 0, "lost": 0}
        for line in lines:
            name, _, value = line.rpartition(" ")
            if name == 'ebpftrace_records_total{program="numbered"}':
                found["records"] = int(float(value))
            elif not name.startswith("#") and "_created" not in name and ("dropped" in name or "undecoded" in name):
                found["lost"] += int(float(value))
        return found

    def cpu_s(self) -> float:
        """Return the CPU time it has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def peak_mib(self) -> float:
        """Return the most memory that it ever had."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise LookupError("VmHWM")

    def end(self) -> int:
        """Stop it, and return its exit code; idempotent."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._log.close()
        return self._process.wait(30)


def produce(rate: float, seconds: float) -> tuple[int, float]:
    """Have records submitted at an even rate, from another process; return how many, and the rate that it came to."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        start, calls = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            while calls * COPIES < elapsed * rate:
                with contextlib.suppress(ProcessLookupError):
                    os.getpgid(FIRST + calls)
                calls += 1
            time.sleep(0.001)
        os.write(sink, f"{calls * COPIES} {calls * COPIES / (time.perf_counter() - start)}".encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as answer:
        records, real_rate = answer.read().split()
    os.waitpid(child, 0)
    return int(records), float(real_rate)


class Run:
    """Records at one rate, from a new agent to the receiver."""

    def __init__(self, folder: Path, rate: float, seconds: float) -> None:
        receiver = Receiver()
        agent = None
        try:
            agent = Agent(folder, receiver.endpoint)
            cpu_s = agent.cpu_s()
            start = time.perf_counter()
            self.submitted, self.rate = produce(rate, seconds)
            self.cpu = 100 * (agent.cpu_s() - cpu_s) / (time.perf_counter() - start)
            time.sleep(0.3)  # the last records are read within 50 ms
            counters = agent.counters()
            self.peak_mib = agent.peak_mib()
            self.exit_code = agent.end()
            self.lost = counters["lost"]
            self.read = counters["records"]
            # the agent's own traces of its start and end come beside
            self.received, self.bytes = receiver.spans, receiver.bytes
        finally:
            if agent is not None:
                agent.end()
            receiver.close()

    def check(self) -> None:
        """End the benchmark when the counters and the receiver contradict each other."""
        if self.read + self.lost < self.submitted or (not self.lost and self.received < self.submitted):
            sys.exit(
                f"of {self.submitted} records {self.read} were read, {self.lost} counted as lost, "
                f"{self.received} spans arrived"
            )


def prepare(folder: Path) -> None:
    """Put the program, built, into a folder."""
    build = ["build", f"{PROGRAM}.bpf.c", "-o", folder / "numbered.bpf.o"]
    subprocess.run([*EBPFTRACE, *build], check=True, stdout=subprocess.DEVNULL)
    (folder / "numbered.yaml").write_text(PROGRAM.with_suffix(".yaml").read_text())


def main() -> None:
    quick = arguments(__doc__).quick
    say(machine())
    with tempfile.TemporaryDirectory(prefix="ebpftrace-bench-") as name:
        folder = Path(name)
        prepare(folder)
        run = Run(folder, RATE, 1 if quick else 30)
        run.check()
        report("records_submitted", run.submitted, "records", exactly=run.submitted, rate=round(run.rate))
        report("records_lost", run.lost, "records", baseline="records_submitted", target=0)
        report("spans_received", run.received, "spans", exactly=run.received)
        report("cpu_at_200k", run.cpu, "%", of="one CPU")
        report("peak_memory", run.peak_mib, "MiB", target=100)
        report("bytes_a_span", run.bytes / max(1, run.received), "bytes")
        best = run
        while not quick and not run.lost and run.rate > 0.8 * RATE * STEP**-1:
            run = Run(folder, best.rate * STEP, 3)
            run.check()
            say(f"{run.rate:12,.0f} records/s: {run.lost} lost, {run.cpu:.0f} % of a CPU")
            if run.lost or run.rate < 1.05 * best.rate:  # or the producer cannot make more
                break
            best = run
        report("without_loss", best.rate, "records/s", target=RATE, cpu=round(best.cpu), peak_mib=round(best.peak_mib))


if __name__ == "__main__":
    main()
