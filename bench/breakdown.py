# SPDX-License-Identifier: Apache-2.0
"""What the always-on breakdown costs a service: a Flask application, instrumented, two spans a request.

In process, one request after the other, by CPU time; and behind a WSGI server on loopback that four keep-alive
connections keep busy, by throughput and by the server's CPU time for a request. Off, loaded (programs in the kernel
and contexts published, no breakdown) and on take turns within each server process.
"""

from __future__ import annotations

import opentelemetry.context as otel
from _harness import arguments, cpu_ns, differences, interleaved, machine, report, say, session
from _load import Service, compared, overhead
from _service import make_app, request

MODES = ("off", "loaded", "on")


def measure_in_process(rounds: int) -> None:
    """Report the CPU time of a request in this process."""
    plain = request(make_app())
    with session():
        ours = request(make_app())
        with_us = otel._RUNTIME_CONTEXT
        without = with_us.inner

        def off() -> float:
            otel._RUNTIME_CONTEXT = without
            try:
                return cpu_ns(plain, 9)
            finally:
                otel._RUNTIME_CONTEXT = with_us

        off_ns, on_ns = interleaved([off, lambda: cpu_ns(ours, 9)], rounds)
    report("wsgi_request_off", [ns / 1000 for ns in off_ns], "µs")
    report("wsgi_request_on_added", [ns / 1000 for ns in differences(on_ns, off_ns)], "µs", baseline="wsgi_request_off")
    ratios = [100 * (on / off - 1) for on, off in zip(on_ns, off_ns, strict=True)]
    report("wsgi_request_on_overhead", ratios, "%", baseline="wsgi_request_off", target=1)


def measure_service(processes: int, turns: int, seconds: float) -> None:
    """Report throughput and CPU time of the service."""
    speeds, costs = compared(Service("_service.py", "/prices"), MODES, processes, turns, seconds)
    report("http_throughput_off", speeds["off"], "requests/s")
    report("http_cpu_off", costs["off"], "µs")
    for mode in MODES[1:]:
        lost, more = overhead(speeds, mode, "off"), overhead(costs, mode, "off")
        report(f"http_throughput_{mode}_lost", [-each for each in lost], "%", baseline="http_throughput_off", target=1)
        report(f"http_cpu_{mode}_added", more, "%", baseline="http_cpu_off", target=1)


def main() -> None:
    quick = arguments(__doc__).quick
    say(machine())
    measure_in_process(30 if quick else 1500)
    if quick:
        measure_service(1, 3, 0.05)
    else:
        measure_service(3, 70, 0.05)


if __name__ == "__main__":
    main()
