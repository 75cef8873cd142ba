# SPDX-License-Identifier: Apache-2.0
"""What readers that know the OTEPs alone find in a process that runs the library; no kernel programs are needed."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from otep import Process
from otep_app import Application

from ebpftrace.context import _publisher
from ebpftrace.runtime.process_context import MAX_PAYLOAD_BYTES, encode, find_mapping, try_out

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the reader in otep.py knows the registers and relocations of x86-64"
)

THREADS = """
    ebpftrace.start()
    tracer = provide(**{"service.name": "shop", "service.instance.id": "one"})
    ready, go = threading.Barrier(4), threading.Barrier(4)
    spans = {}

    def work(name):
        with tracer.start_as_current_span(name) as outer:
            spans[threading.get_native_id()] = hexadecimal(outer)
            ready.wait(); go.wait()
            with tracer.start_as_current_span("inner") as inner:
                spans[threading.get_native_id()] = hexadecimal(inner)
                ready.wait(); go.wait()
        spans[threading.get_native_id()] = None
        ready.wait(); go.wait()

    def idle():
        spans[threading.get_native_id()] = None
        for _ in range(3):
            ready.wait(); go.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"] + [threading.Thread(target=idle)]
    [thread.start() for thread in threads]
    for _ in range(3):
        ready.wait()
        say({**spans, os.getpid(): None})
        go.wait()
    [thread.join() for thread in threads]
    say({os.getpid(): None})
    ebpftrace.stop()
    say({})
"""


def test_threads():
    """Each of several threads is found with its span, nested ones too; those without a span with none."""
    with Application(THREADS) as app:
        reader = app.reader
        seen = []
        for _ in range(3):
            truth = app.said()
            symbol = reader.symbol()
            found = {tid: reader.thread(int(tid), symbol) for tid in truth}
            seen += [record for record in found.values() if record]
            assert truth == {
                tid: [record.trace_id, record.span_id, record.flags] if record else None
                for tid, record in found.items()
            }
            app.go_on()

    assert 4 == len(seen)
    assert {b""} == {record.attributes for record in seen}


def test_process_context():
    """The process context says the application's resource, and that threads are found by OTEP 4947."""
    with Application(THREADS) as app:
        reader = app.reader
        app.said()
        context = reader.process_context()

    assert {"service.name": "shop", "service.instance.id": "one"} == context["resource"]
    assert {"threadlocal.schema_version": "tlsdesc_v1_dev", "threadlocal.attribute_key_map": []} == context[
        "attributes"
    ]


def test_stop():
    """After stop() there is no process context, and the thread's pointer is null."""
    code = """
        ebpftrace.start()
        with provide().start_as_current_span("work"):
            say(os.getpid())
            ebpftrace.stop()
            say(os.getpid())
    """
    with Application(code) as app:
        reader = app.reader
        pid = app.said()
        symbol = reader.symbol()
        before = (reader.process_context() is not None, reader.pointer(pid, symbol) != 0)
        app.go_on()
        app.said()

        assert (True, True) == before
        assert (None, 0) == (reader.process_context(), reader.pointer(pid, symbol))


@pytest.mark.parametrize("end", ["ebpftrace.stop()", "_publisher.disarm()", "_publisher.otel_withdraw()"])
def test_other_threads_at_the_end(end):
    """A table that is unmapped, or a process context taken away, is pointed to by no thread any more."""
    code = """
        from ebpftrace.context import _publisher
        ebpftrace.start()
        tracer, ready, end = provide(), threading.Barrier(9), threading.Event()

        def work():
            with tracer.start_as_current_span("work"):
                ready.wait()
                end.wait()

        threads = [threading.Thread(target=work) for _ in range(8)]
        [thread.start() for thread in threads]
        ready.wait()
        tids = [thread.native_id for thread in threads]
        say(tids)
        END
        say(tids)
    """
    with Application(code.replace("END", end)) as app:
        reader = app.reader
        tids = app.said()
        symbol = reader.symbol()
        before = {reader.pointer(tid, symbol) for tid in tids}
        app.go_on()
        app.said()

        assert 8 == len(before - {0})
        assert {0} == {reader.pointer(tid, symbol) for tid in tids}


def test_threads_come_and_go():
    """Threads that have ended are out of reach when the table is unmapped: new ones may be where they were."""
    code = """
        ebpftrace.start()
        tracer = provide()

        def work():
            with tracer.start_as_current_span("work"):
                pass

        for _ in range(50):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        ebpftrace.stop()
        say("stopped")
    """
    with Application(code) as app:
        assert "stopped" == app.said()
        app.go_on()
        assert 0 == app.process.wait(20)


def test_later_resource():
    """The resource of a provider that comes later replaces what was said first, under another time."""
    code = """
        ebpftrace.start()
        say(1)
        provide(**{"service.name": "late"})
        say(2)
    """
    with Application(code, OTEL_SERVICE_NAME="early") as app:
        reader = app.reader
        app.said()
        first = reader.process_context()
        app.go_on()
        app.said()
        second = reader.process_context()

    assert ("early", "late") == (first["resource"]["service.name"], second["resource"]["service.name"])
    assert first["published"] < second["published"]


def test_global_provider():
    """Of several providers, the global one's resource is said."""
    code = """
        ebpftrace.start()
        provide(**{"service.name": "global"})
        TracerProvider(resource=Resource({"service.name": "another"})).get_tracer("app")
        say(1)
    """
    with Application(code) as app:
        reader = app.reader
        app.said()

        assert "global" == reader.process_context()["resource"]["service.name"]


def test_unset_resource():
    """Before there is a provider, the resource is what OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say."""
    code = """
        ebpftrace.start()
        say(1)
    """
    env = {"OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
    with Application(code, **env) as app:
        app.said()

        assert {
            "service.name": "shop",
            "deployment.environment.name": "test",
        } == app.reader.process_context()["resource"]


def test_provider_before_start():
    """A global provider that is there before start() is asked for its resource."""
    code = """
        provide(**{"service.name": "first"})
        ebpftrace.start()
        say(1)
    """
    with Application(code) as app:
        app.said()

        assert {"service.name": "first"} == app.reader.process_context()["resource"]


def test_provider_after_stop():
    """A provider that asks after stop() brings nothing back."""
    code = """
        ebpftrace.start()
        from ebpftrace.runtime import session
        context = session._session._context
        ebpftrace.stop()
        context.update(TracerProvider(resource=Resource({"service.name": "late"})))
        say(1)
    """
    with Application(code) as app:
        app.said()

        assert app.reader.process_context() is None


def test_torn_reads():
    """However often it is updated, a reader finds the process context whole or is told to try again."""
    code = """
        from ebpftrace.context import _publisher
        from ebpftrace.runtime.process_context import encode
        payloads = [encode({"x": str(number) * (1 + 500 * number)}) for number in range(8)]
        _publisher.otel_publish(payloads[0])
        print(1, flush=True)
        while True:
            for payload in payloads:
                _publisher.otel_publish(payload)
    """
    with Application(code) as app:
        reader = app.reader
        app.said()
        found = [reader.process_context()["resource"]["x"] for _ in range(300)]

    assert {str(n) * (1 + 500 * n) for n in range(8)} >= set(found)
    assert 2 < len(set(found))


FORK = """
    ebpftrace.start()
    tracer = provide(**{"service.name": "parent"})
    with tracer.start_as_current_span("parent") as span:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            os._exit(0)
        say(os.getpid())
        with tracer.start_as_current_span("child") as span:
            import time
            while ebpftrace.stats()["reason"].startswith("the process forked"):
                time.sleep(0.01)
            with tracer.start_as_current_span("grandchild") as span:
                say(hexadecimal(span))
        os._exit(0)
"""


def test_fork():
    """A forked child has neither the parent's process context nor a pointer; from its first span on, its own."""
    with Application(FORK) as app:
        child = app.said()
        reader = Process(child)
        symbol = reader.symbol()
        before = (reader.process_context(), reader.pointer(child, symbol))
        app.go_on()
        truth = app.said()
        found = reader.thread(child, symbol)
        service = reader.process_context()["resource"]["service.name"]
        app.go_on()
        _, errors = app.process.communicate(timeout=20)

    assert (None, 0) == before
    assert truth == [found.trace_id, found.span_id, found.flags]
    assert "parent" == service
    assert 1 == errors.count("kernel tracing is off"), errors


def test_exec():
    """What a process becomes by exec() has no context."""
    code = """
        ebpftrace.start()
        with provide().start_as_current_span("work"):
            say(1)
            os.execv(sys.executable, [sys.executable, "-c", "import sys; print(2, flush=True); sys.stdin.readline()"])
    """
    with Application(code) as app:
        app.said()
        before = app.reader.process_context()
        app.go_on()
        app.said()

        assert before is not None
        assert (None, None) == (app.reader.process_context(), app.reader.symbol())


FOREIGN = """
    import ctypes, logging
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    fd = os.memfd_create("OTEL_CTX")
    os.ftruncate(fd, 4096)
    import mmap
    theirs = mmap.mmap(fd, 4096)
    theirs[:8] = b"OTHER_CT"
    ebpftrace.start()
    with provide().start_as_current_span("work"):
        say({"pid": os.getpid(), "stats": ebpftrace.stats()["otel_context"], "theirs": theirs[:].count(0)})
    sys.exit(0)
"""


def test_somebody_elses():
    """Where somebody else's process context is, it is left alone, ours is not made, and one log line says so."""
    with Application(FOREIGN) as app:
        reader = app.reader
        said = app.said()
        names = [name for _, _, name in reader.mappings() if "OTEL_CTX" in name]
        pointer = reader.pointer(said["pid"], reader.symbol())
        app.go_on()
        _, errors = app.process.communicate(timeout=20)

    assert (1, 0) == (len(names), pointer)
    assert 4096 - 8 == said["theirs"]
    assert not said["stats"]["published"]
    assert "somebody else's is in place: /memfd:OTEL_CTX" in said["stats"]["reason"]
    assert 1 == errors.count("is left alone"), errors


@pytest.mark.parametrize("setting", ["EBPFTRACE_OTEL_CONTEXT", "EBPFTRACE_DISABLED"])
def test_off(setting):
    """With the setting off, or the library disabled, nothing is published."""
    code = """
        ebpftrace.start()
        with provide().start_as_current_span("work"):
            say(os.getpid())
    """
    value = "0" if setting == "EBPFTRACE_OTEL_CONTEXT" else "1"
    with Application(code, **{setting: value}) as app:
        reader = app.reader
        pid = app.said()
        symbol = reader.symbol()  # none: the extension is not even loaded when the library is disabled

        assert reader.process_context() is None
        assert symbol is None or reader.pointer(pid, symbol) == 0


def test_exports():
    """The extension exports the symbol and Python's way in, nothing else, and takes little of every thread's memory."""
    with Path(_publisher.__file__).open("rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".dynsym").iter_symbols()
        exported = {symbol.name for symbol in symbols if symbol["st_shndx"] != "SHN_UNDEF" and symbol.name}
        [thread_block] = elf.iter_segments("PT_TLS")

        assert {"PyInit__publisher", "otel_thread_ctx_v1"} == exported
        assert thread_block["p_memsz"] <= 128


def test_large_resource():
    """A resource that is too large for readers is cut to what names the service."""
    small = encode({"service.name": "shop", "note": "x"})
    cut = encode({"service.name": "shop", "note": "x" * MAX_PAYLOAD_BYTES})
    none = encode({"service.name": "x" * MAX_PAYLOAD_BYTES})

    assert b"note" in small
    assert b"shop" in cut
    assert b"note" not in cut
    assert b"service.name" not in none
    assert b"threadlocal.schema_version" in none


def test_mappings_of_readers(tmp_path):
    """A process context is recognised by each name that a kernel may give it."""
    maps = tmp_path / "maps"
    lines = "7f00-7f01 rw-p 00000000 00:00 0 {}\n7f02-7f03 r--p 00000000 00:01 7 /usr/lib/libc.so\n"
    for name in ("[anon_shmem:OTEL_CTX]", "[anon:OTEL_CTX]", "/memfd:OTEL_CTX (deleted)"):
        maps.write_text(lines.format(name))
        assert f"{name} at 7f00" == find_mapping(maps)
    maps.write_text(lines.format("/memfd:OTHER (deleted)"))
    assert "" == find_mapping(maps)
    assert "" == find_mapping(tmp_path / "nothing")


def test_wrong_payload():
    """A payload that is not bytes is a TypeError, and nothing is published."""
    with pytest.raises(TypeError, match="bytes"):
        _publisher.otel_publish("text")
    assert 0 == _publisher.otel_address()


def test_try_out():
    """What doctor tries works here, and leaves nothing."""
    there, detail = try_out()

    assert there
    assert "OTEL_CTX" in detail
    assert ("", 0) == (find_mapping(), _publisher.otel_address())
