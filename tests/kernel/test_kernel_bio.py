# SPDX-License-Identifier: Apache-2.0
"""bio: the requests that a span's reads and writes become, seen at the block device."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from harness import App, below, kernel, named, run
from machine import until

KIB, MIB = 1 << 10, 1 << 20
SECTOR = 512
BIO = "ebpftrace.bio."
NOTHING_LOST = {"ring_full": 0, "map_full": 0, "limit": 0}


class Disk:
    """A loop device on a file, for one test.

    Args:
        directory: of the file.
        size: in bytes.
        direct: the device reads and writes its file past the page cache.
        sparse: nothing has been written to it.
    """

    def __init__(self, directory, size, *, direct=False, sparse=False):
        self.file = Path(directory) / "disk"
        with self.file.open("wb") as file:
            for _ in range(0, 0 if sparse else size, MIB):
                file.write(os.urandom(MIB))
            file.truncate(size)
            os.fsync(file.fileno())
        command = ["losetup", "--find", "--show", f"--direct-io={'on' if direct else 'off'}", str(self.file)]
        self.path = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        self.name = Path(self.path).name
        before = None
        while before != (before := disk_stat(self.name)):
            time.sleep(0.2)  # whoever looks at new devices has done so

    def close(self):
        """Take the device down."""
        subprocess.run(["losetup", "--detach", self.path], check=True)


@pytest.fixture
def disk(tmp_path):
    """A device of 16 MiB that nobody else uses."""
    with contextlib.closing(Disk(tmp_path, 16 * MIB)) as found:
        yield found


def disk_stat(name):
    """The kernel's own count of a device's requests and bytes, by operation."""
    fields = [int(field) for field in Path(f"/sys/block/{name}/stat").read_text().split()]
    return {
        "read": [fields[0], fields[2] * SECTOR],
        "write": [fields[4], fields[6] * SECTOR],
        "discard": [fields[11], fields[13] * SECTOR],
        "flush": [fields[15], 0],
    }


def difference(before, after):
    """What was added to a `disk_stat`."""
    return {operation: [b - a for a, b in zip(before[operation], after[operation], strict=True)] for operation in after}


def tally(requests):
    """The same, counted from (operation, bytes) of requests."""
    found = {operation: [0, 0] for operation in ("read", "write", "discard", "flush")}
    for operation, size in requests:
        found[operation][0] += 1
        found[operation][1] += size
    return found


@contextlib.contextmanager
def opened(path, flags=0):
    """A file descriptor for reading and writing."""
    fd = os.open(path, os.O_RDWR | flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def pages(size):
    """Memory that O_DIRECT takes."""
    return memoryview(mmap.mmap(-1, size))


def bio(span, key):
    """One of the program's own attributes, None when it is absent."""
    return span["attributes"].get(BIO + key)


def services(spans, parent=None):
    """Spans of requests in the device, below `parent` or all, in the order of the disk."""
    found = [span for span in (below(spans, parent) if parent else kernel(spans)) if span["name"] == "block_service"]
    return sorted(found, key=lambda span: bio(span, "sector") or 0)


def write_back(path):
    """Have another process write a file's dirty pages: to the kernel, it is as little ours as a worker of its own."""
    subprocess.run(["sync", "--data", path], check=True)


def direct(path):
    """Reads and a write past the page cache, traced and not."""
    app = App(programs=("bio",))
    with opened(path, os.O_DIRECT) as fd:
        with app.traced("read", "bio"):
            os.preadv(fd, [pages(256 * KIB)], 64 * KIB)
        with app.traced("write", "bio"):
            os.pwritev(fd, [pages(64 * KIB)], MIB)
        with app.span("not enabled"):
            os.preadv(fd, [pages(256 * KIB)], 64 * KIB)
    with app.traced("disk was left alone", "bio"):
        time.sleep(0.01)
    return {"spans": app.spans(), "pid": os.getpid(), "stats": app.session.stats()["programs"]["bio"]}


def test_direct(disk):
    """Direct I/O is one span for each request in the device, below the span that asked, with its place and size."""
    found = run(direct, disk.path).value
    spans = found["spans"]
    for name, start, size in (("read", 64 * KIB, 256 * KIB), ("write", MIB, 64 * KIB)):
        parent = named(spans, name)
        requests = services(spans, parent)
        places = [(bio(span, "sector") * SECTOR, bio(span, "bytes")) for span in requests]

        assert start == places[0][0]
        assert all(place + length == following for (place, length), (following, _) in itertools.pairwise(places))
        assert start + size == sum(places[-1])
        for span in requests:
            assert {name} == {bio(span, "operation")}
            assert disk.name == span["attributes"]["system.device"]
            assert parent["start"] <= span["start"] < span["end"] <= parent["end"]
            assert (found["pid"], found["pid"]) == (
                span["attributes"]["process.pid"],
                span["attributes"]["thread.id"],
            )
            assert bio(span, "sync")
            assert not any(bio(span, key) for key in ("deferred", "meta", "readahead", "requeues"))
            assert bio(span, "segments") >= 1
    assert {named(spans, "read")["id"], named(spans, "write")["id"]} == {span["parent"] for span in kernel(spans)}
    assert found["stats"]["dropped"] == NOTHING_LOST


def queued(path):
    """A direct read from a device with a scheduler, which has a queue."""
    app = App(programs=("bio",))
    with opened(path, os.O_DIRECT) as fd, app.traced("read", "bio"):
        os.preadv(fd, [pages(64 * KIB)], 0)
    return app.spans()


def test_queue(disk):
    """With an I/O scheduler a request waits in its queue first: the queue span ends where the service span begins."""
    scheduler = Path(f"/sys/block/{disk.name}/queue/scheduler")
    choices = scheduler.read_text().split()
    others = [choice for choice in choices if choice not in ("none", "[none]")]
    if not others:
        pytest.skip("this kernel has no I/O scheduler")
    [chosen] = [choice.strip("[]") for choice in choices if choice.startswith("[")]
    scheduler.write_text(others[0].strip("[]"))
    try:
        spans = run(queued, disk.path).value
    finally:
        scheduler.write_text(chosen)
    parent = named(spans, "read")
    queue, service = sorted(below(spans, parent), key=lambda span: span["start"])

    assert ("block_queue", "block_service") == (queue["name"], service["name"])
    assert queue["end"] == service["start"]
    assert parent["start"] <= queue["start"] < queue["end"]
    same = [BIO + key for key in ("sector", "bytes", "operation")]
    assert [queue["attributes"][key] for key in same] == [service["attributes"][key] for key in same]
    assert "tp_btf/block_rq_issue" == queue["attributes"]["ebpftrace.hook"]


def synced(path):
    """A buffered write and its fsync, in one span."""
    app = App(programs=("bio",))
    with opened(path) as fd, app.traced("save", "bio"):
        os.pwrite(fd, os.urandom(40 * KIB), 4 * MIB)
        os.fsync(fd)
    return app.spans()


def test_fsync(disk):
    """What fsync() writes is below the span that called it, and so is the flush of the device's cache."""
    spans = run(synced, disk.path).value
    parent = named(spans, "save")
    requests = services(spans, parent)
    [flush] = [span for span in requests if bio(span, "operation") == "flush"]
    writes = [span for span in requests if bio(span, "operation") == "write"]

    assert 40 * KIB == sum(bio(span, "bytes") for span in writes)
    assert not any(bio(span, "deferred") for span in requests)
    assert {disk.name} == {span["attributes"]["system.device"] for span in requests}
    assert max(span["end"] for span in writes) <= flush["start"] < flush["end"] <= parent["end"]
    assert bio(flush, "sector") is None
    assert 0 == bio(flush, "bytes")


def deferred(path):
    """Two spans write parts of the same file that are far apart; another process has them written later."""
    app = App(programs=("bio",))
    with opened(path) as fd:
        for number, name in enumerate(("first", "second", "first again")):
            with app.traced(name, "bio"):
                os.pwrite(fd, os.urandom(4 * KIB), (2 + 2 * number) * MIB)
        ended = time.time_ns()
        write_back(path)
        os.pwrite(fd, os.urandom(4 * KIB), 2 * MIB)  # untraced, where a traced one wrote before
        write_back(path)
    return {"spans": app.spans(), "ended": ended, "pid": os.getpid()}


def test_deferred_write(disk):
    """A write that is done later, by somebody else, is below the span that wrote that part of the file, and says so."""
    found = run(deferred, disk.path).value
    spans = found["spans"]
    for number, name in enumerate(("first", "second", "first again")):
        [request] = services(spans, named(spans, name))

        assert ((2 + 2 * number) * MIB, 4 * KIB) == (bio(request, "sector") * SECTOR, bio(request, "bytes"))
        assert bio(request, "deferred") is True
        assert request["start"] >= found["ended"] > named(spans, name)["end"]
        assert found["pid"] == request["attributes"]["process.pid"]
    assert 3 == len(services(spans))


def many_dirty(path, count):
    """More separate pages written than the program remembers."""
    app = App(programs=("bio",))
    with opened(path) as fd, app.traced("write", "bio"):
        for number in range(count):
            os.pwrite(fd, b"x" * mmap.PAGESIZE, 2 * number * mmap.PAGESIZE)
    return app.session.stats()["programs"]["bio"]["dropped"]


def test_more_dirty_pages_than_remembered(tmp_path):
    """Pages are forgotten, the oldest first, when there are too many; those not yet written are counted."""
    count, remembered = 17_000, 16_384
    with contextlib.closing(Disk(tmp_path, 2 * count * mmap.PAGESIZE, sparse=True)) as disk:
        dropped = run(many_dirty, disk.path, count).value

    # the system may have begun to write; and the write of another file may have made metadata dirty meanwhile
    assert 0 < dropped["map_full"] <= count - remembered + 100


def failing(path):
    """Reads beyond the end of what is behind the device."""
    app = App(programs=("bio",))
    errors = []
    with opened(path, os.O_DIRECT) as fd:
        for name, place in (("half", MIB - 8 * KIB), ("nothing", 4 * MIB)):
            with app.traced(name, "bio"):
                try:
                    os.preadv(fd, [pages(64 * KIB)], place)
                except OSError as error:
                    errors.append(error.errno)
    return {"spans": app.spans(), "errors": errors}


def test_errors(tmp_path):
    """A request that fails is one span with the error, also when a part of it was done and the rest was tried again."""
    try:
        found = Disk(tmp_path, 8 * MIB, direct=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a loop device on {tmp_path} cannot do direct I/O: {error}")
    with contextlib.closing(found) as disk:
        os.truncate(disk.file, MIB)
        outcome = run(failing, disk.path).value
    spans = outcome["spans"]
    [half], [nothing] = (services(spans, named(spans, name)) for name in ("half", "nothing"))

    assert [errno.EIO] * 2 == outcome["errors"]
    assert ["EIO"] * 2 == [half["error"], nothing["error"]]
    assert (64 * KIB, (MIB - 8 * KIB) // SECTOR) == (bio(half, "bytes"), bio(half, "sector"))
    assert 1 == bio(half, "requeues")
    assert bio(nothing, "requeues") is None
    [again] = [span for span in below(spans, named(spans, "half")) if span["name"] == "block_queue"]
    assert again["error"] is None


def busy(path):
    """A bit of everything by several threads, each in its own span and its own part of the disk."""
    app = App(programs=("bio",))
    name = Path(path).name
    before = disk_stat(name)

    def work(number):
        with opened(path) as fd, opened(path, os.O_DIRECT) as raw, app.traced(str(number), "bio"):
            for place in range(number * 2 * MIB, number * 2 * MIB + MIB, 128 * KIB):
                os.preadv(raw, [pages(32 * KIB)], place)
                os.pwritev(raw, [pages(16 * KIB)], place)
            os.pwrite(fd, os.urandom(300 * KIB), number * 2 * MIB + MIB)
            os.fdatasync(fd)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = difference(before, disk_stat(name))
    return {"spans": app.spans(), "counted": counted, "stats": app.session.stats()["programs"]["bio"]}


def test_agrees_with_the_kernel(disk):
    """Requests and bytes add up to the device's own counters, each thread's below its own span."""
    found = run(busy, disk.path).value
    spans = found["spans"]
    requests = services(spans)
    counted = tally((bio(span, "operation"), bio(span, "bytes")) for span in requests)

    counted["write"][0] += 4  # to the kernel, to ask for a flush is a write of no bytes; one flush may do for several
    assert found["counted"] == counted
    assert found["stats"]["dropped"] == NOTHING_LOST
    for number in range(4):
        for span in services(spans, named(spans, str(number))):
            part, place = divmod((bio(span, "sector") or 0) * SECTOR, 2 * MIB)
            if bio(span, "operation") == "read" or 0 < place < MIB:  # fdatasync() is for what others wrote, too
                assert number == part


class Watched:
    """The program as the agent loads it: no application, knobs set, records as they are.

    Args:
        knobs: set before loading.
    """

    def __init__(self, **knobs):
        from ebpftrace.kernel.btf import Btf
        from ebpftrace.kernel.object import BpfObject
        from ebpftrace.kernel.ringbuf import RingReader
        from ebpftrace.programs import find
        from ebpftrace.programs.choose import choose_functions, kernel_knobs
        from ebpftrace.programs.core import Core

        self._open = contextlib.ExitStack()
        core = Core()
        self._open.callback(core.object.close)
        core.load()
        program = find("bio")
        self.object = BpfObject(program.name, program.object_bytes())
        self._open.callback(self.object.close)
        kernel_types = Btf.kernel()
        choose_functions(self.object, kernel_types)
        present = self.object.btf.variables(".rodata")
        for knob, value in {**kernel_knobs(kernel_types), **knobs}.items():
            if knob in present:
                self.object.set_rodata(knob, value)
        core.lend(self.object)
        self.object.load()
        self._reader = RingReader()
        self._open.callback(self._reader.close)
        self._reader.add(self.object.map("events"), 0)
        self.object.attach()
        self._fields = {field.name: field for field in self.object.btf.fields("ebt_bio_request")}

    def records(self, device):
        """Return the records of a device (major, minor) so far, as dicts of integers."""
        found = []
        while True:
            batch = self._reader.wait(interval_ms=10, timeout_ms=200)
            if not batch.records:
                return [record for record in found if record["device"] == os.makedev(*device)]
            data = bytes(batch.data)
            for _, offset, _ in batch:
                found.append(
                    {
                        name: int.from_bytes(data[offset + field.offset :][: field.size], "little")
                        for name, field in self._fields.items()
                    }
                )

    def close(self):
        """Unload it."""
        self._open.close()


QUEUE, SERVICE, REQUEST = 1, 2, 3
OPERATIONS = {0: "read", 1: "write", 2: "flush", 3: "discard"}


def watched(path, knobs):
    """I/O of a process that publishes no context, seen by the program as the agent has it."""
    stat = Path(path).stat()
    with contextlib.closing(Watched(**knobs)) as program:
        before = disk_stat(Path(path).name)
        with opened(path) as fd, opened(path, os.O_DIRECT) as raw:
            os.preadv(raw, [pages(512 * KIB)], 0)
            os.pwrite(fd, os.urandom(100 * KIB), 4 * MIB)
            os.fsync(fd)
        counted = difference(before, disk_stat(Path(path).name))
        device = (os.major(stat.st_rdev), os.minor(stat.st_rdev))
        records = program.records(device)
        in_flight = sum(1 for _ in program.object.map("requests"))
    return {"records": records, "counted": counted, "pid": os.getpid(), "in flight": in_flight}


def test_all_requests(disk):
    """With `trace_all` every request that no span led to is a trace of its own, the whole its root, its ids random."""
    found = run(watched, disk.path, {"trace_all": 1}).value
    records = found["records"]
    roots = [record for record in records if record["span.hdr.type"] == REQUEST]
    parts = [record for record in records if record["span.hdr.type"] == SERVICE]
    by_id = {record["span.span_id"]: record for record in roots}

    counted = tally((OPERATIONS[record["operation"]], record["bytes"]) for record in parts)
    counted["write"][0] += 1  # to the kernel, to ask for a flush is a write of no bytes
    assert found["counted"] == counted
    assert sum(requests for requests, _ in counted.values()) == len(roots) + 1  # the flush is a part of who asked
    assert 0 == found["in flight"]
    assert {0} == {record["span.parent_span_id"] for record in roots}
    assert len(roots) == len({record["span.trace_id"] for record in roots})
    for part in parts:
        root = by_id[part["span.parent_span_id"]]
        assert root["span.trace_id"] == part["span.trace_id"]
        assert root["span.hdr.ts_ns"] <= part["span.hdr.ts_ns"]
        assert part["span.hdr.ts_ns"] + part["span.duration_ns"] <= root["span.hdr.ts_ns"] + root["span.duration_ns"]
        assert found["pid"] == part["pid"]
    ids = [record["span.span_id"] for record in records] + [record["span.trace_id"] >> 64 for record in roots]
    assert len(set(ids)) == len(ids)
    assert sum(number >> 48 == 0xFFFF for number in ids) <= 1  # as all kernel addresses begin, and one in 65536 others


def test_nothing_enabled(disk):
    """Without a context and without `trace_all` nothing is recorded, nor kept."""
    found = run(watched, disk.path, {}).value

    assert ([], 0) == (found["records"], found["in flight"])
    assert found["counted"]["read"][0] > 0


def test_min_latency(disk):
    """Requests that took less than `min_latency_ns` make no span."""
    found = run(watched, disk.path, {"trace_all": 1, "min_latency_ns": 60_000_000_000}).value

    assert [] == found["records"]


def ended_requests(path):
    """Many direct reads; then what is left of them."""
    app = App(programs=("bio",))
    with opened(path, os.O_DIRECT) as fd, app.traced("reads", "bio"):
        for place in range(0, 8 * MIB, 16 * KIB):
            os.preadv(fd, [pages(4 * KIB)], place)
    until(lambda: len(services(app.spans())) >= 512)
    return {"spans": app.spans(), "stats": app.session.stats()["programs"]["bio"]}


def test_many_requests(disk):
    """Hundreds of requests in one span all arrive, each once."""
    found = run(ended_requests, disk.path).value
    places = [bio(span, "sector") * SECTOR for span in services(found["spans"])]

    assert list(range(0, 8 * MIB, 16 * KIB)) == places
    assert len(kernel(found["spans"])) == found["stats"]["records"]
    assert found["stats"]["dropped"] == NOTHING_LOST
