# SPDX-License-Identifier: Apache-2.0
"""Whatever is missing or wrong: one clear log line, and an application that goes on as if we were not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from harness import App, kernel, named, own, run


def attempt(settings=None):
    """Start with what there is, and make a span that enables everything."""
    app = App(**(settings or {}))
    with app.traced("job"):
        time.sleep(0.01)
    return {"active": app.session.active, "reason": app.session.reason, "spans": app.spans()}


def unharmed(outcome):
    """The application's span is there, and nothing of the kernel's."""
    [span] = outcome.value["spans"]
    return (span["name"], span["times"], span["error"]) == ("job", {}, None)


# Nobody, but for reading files: the Python that runs this may be in somebody's home.
NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv(1)")
def test_other_user():
    """An ordinary user's application runs untraced; the one log line says what privilege is missing."""
    outcome = run(attempt, prefix=NOBODY)

    assert not outcome.value["active"]
    assert "CAP_BPF" in outcome.value["reason"]
    assert [f"WARNING kernel tracing is off: {outcome.value['reason']}"] == outcome.log
    assert unharmed(outcome)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv(1)")
def test_no_capabilities():
    """The same goes for root without capabilities, as in a container."""
    outcome = run(attempt, prefix=("setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin"))

    assert not outcome.value["active"]
    assert "CAP_BPF" in outcome.value["reason"]
    assert 1 == len(outcome.log)
    assert unharmed(outcome)


@pytest.mark.parametrize("how", ["call", "environment"])
def test_disabled(how):
    """Switched off, the library does nothing and says so."""
    env, settings = ({}, {"disabled": True}) if how == "call" else ({"EBPFTRACE_DISABLED": "true"}, {})
    outcome = run(attempt, settings, env=env)

    assert not outcome.value["active"]
    assert "disabled" in outcome.value["reason"]
    assert 1 == len(outcome.log)
    assert unharmed(outcome)


def wrong_names():
    """Programs that do not exist, wherever one can be named."""
    import ebpftrace
    from ebpftrace.errors import ConfigError

    def message(action):
        try:
            action()
        except ConfigError as error:
            return str(error)
        return None

    return [
        message(lambda: ebpftrace.start(programs=["shed"])),
        message(lambda: ebpftrace.start(enable=["shed"])),
        message(lambda: ebpftrace.enable("shed")),
        message(lambda: ebpftrace.traced("shed")),
    ]


def test_wrong_program():
    """A program that does not exist is an error at once, running or not; the message has those that do."""
    messages = run(wrong_names).value

    for message in messages:
        assert "'shed'" in message
        assert "exec" in message
        assert "sched" in message


def wrong_values():
    """Values of a wrong kind or size."""
    import ebpftrace
    from ebpftrace.errors import ConfigError

    messages = []
    for given in ({"ring_kib": 5}, {"ring_kib": "many"}, {"min_off_cpu_us": -1}, {"programs": "sched"}):
        with pytest.raises(ConfigError) as caught:
            ebpftrace.start(**given)
        messages.append(str(caught.value))
    return messages


def test_wrong_value():
    """A wrong value in a call is an error that names the setting."""
    messages = run(wrong_values).value

    for message, name in zip(messages, ("ring_kib", "ring_kib", "min_off_cpu_us", "programs"), strict=True):
        assert name in message


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EBPFTRACE_RING_KIB", "1000"),
        ("EBPFTRACE_MIN_OFF_CPU_US", "soon"),
        ("EBPFTRACE_BREAKDOWN", "perhaps"),
        ("EBPFTRACE_PROGRAMS", "sched,shed"),
        ("EBPFTRACE_ENABLE", "shed"),
    ],
)
def test_wrong_environment(variable, value):
    """A wrong value in the environment is one warning that names the variable; the library runs with the default."""
    outcome = run(attempt, env={variable: value})

    assert outcome.value["active"]
    [line] = outcome.log
    assert line.startswith(f"WARNING {variable}=")
    assert kernel(outcome.value["spans"])


def twice(first, second):
    """Start twice."""
    import ebpftrace

    one, other = ebpftrace.start(**first), ebpftrace.start(**second)
    return {"same": one is other, "active": other.active}


def test_second_start():
    """A second start() returns the running session, in silence."""
    outcome = run(twice, {"ring_kib": 64}, {"ring_kib": 64})

    assert {"same": True, "active": True} == outcome.value
    assert [] == outcome.log


def test_second_start_with_other_settings():
    """A second start() with other settings changes nothing, and one line says so."""
    outcome = run(twice, {"ring_kib": 64}, {"ring_kib": 128})

    assert {"same": True, "active": True} == outcome.value
    [line] = outcome.log
    assert "other settings" in line


def _unshare(script):
    """Run Python in a mount namespace of its own, changed by a shell script before."""
    return ("unshare", "--mount", "sh", "-c", f'set -e; {script}; exec "$@"', "sh")


def test_no_kernel_btf(tmp_path):
    """A kernel without BTF is told, with what to do about it."""
    outcome = run(attempt, prefix=_unshare(f"mount --bind {tmp_path} /sys/kernel/btf"))

    assert not outcome.value["active"]
    assert "BTF" in outcome.value["reason"]
    assert 1 == len(outcome.log)
    assert unharmed(outcome)


def test_no_bpf_file_system():
    """Nothing is pinned, so no bpf file system is needed."""
    outcome = run(attempt, prefix=_unshare("if mountpoint -q /sys/fs/bpf; then umount /sys/fs/bpf; fi"))

    assert outcome.value["active"]
    assert [] == outcome.log
    assert kernel(outcome.value["spans"])


def test_no_tracefs(tmp_path):
    """BTF tracepoints need no tracing file system."""
    outcome = run(attempt, prefix=_unshare(f"mount --bind {tmp_path} /sys/kernel/debug"))

    assert outcome.value["active"]
    assert kernel(outcome.value["spans"])


def broken_object(name):
    """One program's object is damaged."""
    from ebpftrace.programs import ShippedProgram

    intact = ShippedProgram.object_bytes
    ShippedProgram.object_bytes = lambda self: b"no ELF" * 100 if self.name == name else intact(self)
    return attempt()


def test_broken_program():
    """A program that cannot be loaded is left out with one line; the others work."""
    outcome = run(broken_object, "exec")

    assert outcome.value["active"]
    [line] = outcome.log
    assert "'exec'" in line
    assert {"sched"} == {span["program"] for span in kernel(outcome.value["spans"])}


def test_broken_core():
    """Without the core object nothing runs, and nothing is left in the process."""
    outcome = run(broken_object, "process")

    assert not outcome.value["active"]
    assert 1 == len(outcome.log)
    assert unharmed(outcome)


def failing_start(place):
    """An error of our own in the middle of start()."""
    import importlib

    module, _, name = place.rpartition(".")

    def fail(*_args, **_settings):
        raise ZeroDivisionError(place)

    setattr(importlib.import_module(module), name, fail)
    return attempt()


@pytest.mark.parametrize(
    "place",
    [
        "ebpftrace.context._publisher.arm",
        "ebpftrace.context.hooks.install",
        "ebpftrace.spans.reader.Reader",
        "ebpftrace.runtime.otel.ProviderBinding",
    ],
)
def test_our_own_error(place):
    """A bug of ours in start() is one log line, leaves nothing behind, and harms no span."""
    outcome = run(failing_start, place)

    assert not outcome.value["active"]
    assert "ZeroDivisionError" in outcome.value["reason"]
    assert 1 == len(outcome.log)
    assert unharmed(outcome)


def few_descriptors():
    """Start with room for few file descriptors, then for one more, until it is enough."""
    import resource

    import ebpftrace

    app = App()  # imports, and all that is opened once
    ebpftrace.stop()
    app.spans()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    while (highest := os.open(os.devnull, os.O_RDONLY)) <= 64:  # the limit is one of numbers: leave none free below
        pass
    before, reasons = len(list(Path("/proc/self/fd").iterdir())), []
    for more in range(1, 100):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, limits[1]))
        session = ebpftrace.start()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        active, reason = session.active, session.reason
        ebpftrace.stop()
        if active:
            break
        reasons.append(reason)
    return {"active": active, "reasons": reasons, "leaked": len(list(Path("/proc/self/fd").iterdir())) - before}


def test_few_descriptors():
    """Wherever start() runs out of file descriptors, it takes back what it did, says so once, and works later."""
    outcome = run(few_descriptors)
    found = outcome.value

    assert found["active"]
    assert len(found["reasons"]) > 5
    assert [] == [reason for reason in found["reasons"] if not reason]
    assert 0 == found["leaked"]
    assert len(found["reasons"]) == len([line for line in outcome.log if "kernel tracing is off" in line])


def provider_order(order):
    """The global provider before start(), or after it."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    import ebpftrace

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    early = trace.get_tracer("early")  # a proxy, as libraries make at import
    if order == "before":
        trace.set_tracer_provider(provider)
    ebpftrace.start()
    if order == "after":
        trace.set_tracer_provider(provider)
    with early.start_as_current_span("job"), ebpftrace.enable("sched"):
        time.sleep(0.01)
    provider.force_flush()
    return [(span.name, (span.parent and span.parent.span_id)) for span in exporter.get_finished_spans()]


@pytest.mark.parametrize("order", ["before", "after"])
def test_global_provider(order):
    """It does not matter whether the global provider is set before start() or after it."""
    names = [name for name, _ in run(provider_order, order).value]

    assert {"job", "sleep"} <= set(names)


def two_providers():
    """A global provider and one of a library's own."""
    from opentelemetry import trace

    app, other = App(), App()
    trace.set_tracer_provider(app.provider)
    with app.traced("global", "sched"):
        time.sleep(0.01)
    with other.span("own"):
        time.sleep(0.01)
    return {"global": app.spans(), "own": other.spans()}


def test_two_providers():
    """Spans of every provider get a breakdown; kernel spans leave by the global one."""
    found = run(two_providers).value

    assert named(found["global"], "global")["times"]["sleep"]
    assert named(found["own"], "own")["times"]["sleep"]
    assert kernel(found["global"])
    assert [] == kernel(found["own"])


def remote_context():
    """No SDK is set up: a sampled context came over the wire and is passed on."""
    from opentelemetry import trace

    import ebpftrace

    session = ebpftrace.start()
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)), ebpftrace.enable("sched"):
        time.sleep(0.01)
    session.flush()
    return session.active


def test_no_provider():
    """Without any provider, kernel spans leave by an exporter of our own, as OTEL_TRACES_EXPORTER says."""
    outcome = run(remote_context, env={"OTEL_TRACES_EXPORTER": "console"})

    assert outcome.value
    assert '"name": "sleep"' in outcome.output
    assert '"parent_id": "0x0000000000000def"' in outcome.output


def dead_backend():
    """An OTLP exporter to a port where nobody listens."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    import ebpftrace

    ebpftrace.start()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter("http://127.0.0.1:9/v1/traces", timeout=2)))
    tracer = provider.get_tracer("app")
    durations = []
    for _ in range(300):
        begin = time.perf_counter()
        with tracer.start_as_current_span("job"), ebpftrace.enable("sched"):
            os.sched_yield()
        durations.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    ebpftrace.stop()
    return {"median": sorted(durations)[150], "stop": time.perf_counter() - begin}


def test_dead_backend():
    """With the backend down, spans cost the application no waiting, and stop() ends in time."""
    found = run(dead_backend).value

    assert found["median"] < 0.002
    assert found["stop"] < 6


@pytest.mark.skipif(not shutil.which("unshare"), reason="no unshare(1)")
def test_pid_namespace():
    """In a pid namespace, where every id is another one, threads are found and spans have the ids seen inside."""
    outcome = run(attempt, prefix=("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"))
    spans = outcome.value["spans"]

    assert outcome.value["active"]
    assert "sleep" in {span["name"] for span in kernel(spans)}
    assert named(spans, "job")["times"]["sleep"] >= 9_000_000
    assert {1} == {span["attributes"]["thread.id"] for span in kernel(spans)}


def in_a_thread_of_a_namespace():
    """Threads and children in a pid namespace."""
    from concurrent.futures import ThreadPoolExecutor

    app = App()

    def work(number):
        with app.traced(f"thread {number}"):
            time.sleep(0.01)
            subprocess.run(["true", str(number)], check=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    return app.spans()


def test_pid_namespace_threads():
    """In a pid namespace threads and processes come under their own spans, too."""
    spans = run(in_a_thread_of_a_namespace, prefix=("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")).value

    for number in range(8):
        job = named(spans, f"thread {number}")
        [process] = [span for span in kernel(spans, "exec") if span["parent"] == job["id"]]
        assert ["true", str(number)] == process["attributes"]["process.command_args"]
        assert "sleep" in {span["name"] for span in kernel(spans, "sched") if span["parent"] == job["id"]}
    assert 8 == len(own(spans))
