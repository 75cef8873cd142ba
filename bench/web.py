# SPDX-License-Identifier: Apache-2.0
"""What the library costs an asynchronous service: FastAPI under uvicorn and uvloop, instrumented, four spans a request.

Four keep-alive connections keep it busy. Without OpenTelemetry ("nothing"), with it ("otel"), with contexts published
and programs in the kernel ("published"), with the breakdown ("breakdown"), and with the program `sched` enabled for
every sampled span too ("sched"): these take turns within each server process.
"""

from __future__ import annotations

from _harness import arguments, machine, report, say
from _load import Service, compared, overhead

BASELINES = {"otel": "nothing", "published": "otel", "breakdown": "otel", "sched": "otel"}
MODES = ("nothing", *BASELINES)


def main() -> None:
    quick = arguments(__doc__).quick
    say(machine())
    sizes = (1, 3, 0.05) if quick else (3, 40, 0.2)
    speeds, costs = compared(Service("_web_service.py", "/prices"), MODES, *sizes)
    for mode in MODES:
        report(f"throughput_{mode}", speeds[mode], "requests/s")
        report(f"cpu_{mode}", costs[mode], "µs")
    for mode, base in BASELINES.items():
        lost = [-each for each in overhead(speeds, mode, base)]
        report(f"throughput_{mode}_lost", lost, "%", baseline=f"throughput_{base}")
        report(f"cpu_{mode}_added", overhead(costs, mode, base), "%", baseline=f"cpu_{base}")


if __name__ == "__main__":
    main()
