# SPDX-License-Identifier: Apache-2.0
"""What an ordinary user can do to the agent's registry, and to other users' tables: nothing."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import socket
import threading
import time
from pathlib import Path

import machine
from registrar import OTHER, SLOTS, Child, ask, bpf, connect, hello, once, outcome, registrar, send_with_fds, staying

from ebpftrace.agent import registry_connections, registry_limits

LINES = 256 * 1024
MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, OBJ_PIN, MAP_GET_NEXT_ID, MAP_GET_FD_BY_ID, MAP_FREEZE = 1, 2, 3, 6, 12, 14, 22


def prying(path, ids):
    """Try everything that descriptors of an own table, and bpf(2), allow."""
    libc = ctypes.CDLL(None, use_errno=True)
    connection = connect(path)
    _, (slots, lines) = ask(connection, hello())
    readable = mmap.mmap(lines, LINES, prot=mmap.PROT_READ)
    address = ctypes.c_void_p.from_buffer_copy(ctypes.string_at(id(readable) + 16, 8)).value
    key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(256)
    words = lambda fd: (fd, 0, *pointer(key), *pointer(value), 0, 0)  # noqa: E731
    found = {
        "map the own slots": outcome(lambda: mmap.mmap(slots, SLOTS)),
        "map lines writable": outcome(lambda: mmap.mmap(lines, LINES)),
        "make lines writable": -1 if libc.mprotect(ctypes.c_void_p(address), 4096, 3) else 0,
        "update lines": bpf(MAP_UPDATE, *words(lines)),
        "delete from lines": bpf(MAP_DELETE, *words(lines)),
        "freeze lines": bpf(MAP_FREEZE, lines),
        "read lines": bpf(MAP_LOOKUP, *words(lines)),
        "list maps": bpf(MAP_GET_NEXT_ID, 0),
        "open another's slots": bpf(MAP_GET_FD_BY_ID, ids[0]),
        "open another's lines": bpf(MAP_GET_FD_BY_ID, ids[1]),
        "open the own slots by id": bpf(MAP_GET_FD_BY_ID, ids[0] + 1),
        "reopen the lines": outcome(lambda: os.open(f"/proc/self/fd/{lines}", os.O_RDWR)),
    }
    libc.memset(mmap_address(slots), 0xFF, SLOTS)  # the own ones: whatever is there, it is nobody else's
    return found


def pointer(buffer):
    """A pointer as two words of 32 bits."""
    address = ctypes.addressof(buffer)
    return address & 0xFFFFFFFF, address >> 32


def mmap_address(fd):
    """Map slots for good; return where."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    return ctypes.c_void_p(libc.mmap(None, SLOTS, 3, mmap.MAP_SHARED, fd, 0))


def test_another_table():
    """With what it got a process writes to its own slots and reads its own lines, and reaches nothing else."""
    with registrar() as agent, Child(staying, agent.path, uid=OTHER) as innocent:
        ids = innocent.next()
        found = once(prying, agent.path, ids)
        after = innocent.next()

    assert {
        "map the own slots": "ok",
        "map lines writable": "EPERM",
        "make lines writable": -1,
        "update lines": "EPERM",
        "delete from lines": "EINVAL",
        "freeze lines": "EPERM",
        "read lines": "ok",
        "list maps": "EPERM",
        "open another's slots": "EPERM",
        "open another's lines": "EPERM",
        "open the own slots by id": "EPERM",
        "reopen the lines": "EACCES",
    } == found
    assert ["welcome", "mine", 0] == after


def silent(path):
    """Open many connections, and say nothing."""
    made = [connect(path) for _ in range(300)]
    yield len(made)
    time.sleep(30)


def test_silent_connections():
    """Connections that say nothing keep nobody else out, are few at a time, and are closed after two seconds."""
    with registrar() as agent, Child(silent, agent.path) as child:
        child.next()
        most = agent.snapshot().connections
        started = time.monotonic()
        other = once(lambda: ask(connect(agent.path), hello())[0], uid=OTHER)
        took_s = time.monotonic() - started
        machine.until(lambda: agent.snapshot().connections == 0, registry_limits.HELLO_S + 5)
        snapshot = agent.snapshot()

    assert most <= registry_limits.HALF_OPEN_OF_USER + 1
    assert "welcome" == other["type"]
    assert took_s < 5.0 * machine.PATIENCE  # what an application waits
    assert 0 == snapshot.connections
    assert snapshot.refused["late"] > 0
    assert snapshot.refused["busy"] > 100


def shouts(path, number):
    """So many connections at once, each with its hello; then what became of each."""
    made = [connect(path) for _ in range(number)]
    for connection in made:
        connection.send(hello())
    yield number
    found = []
    for connection in made:
        try:
            found.append(json.loads(socket.recv_fds(connection, 16384, 8)[0])["type"])
        except ConnectionResetError:
            found.append("reset")
    yield found


def test_refusals_arrive():
    """Who is turned away while everything is taken reads why, though its hello was not answered."""
    held = threading.Event()
    with registrar() as agent, Child(shouts, agent.path, 40) as child:
        connections = agent.registry._connections
        handle, connections._most = connections.handle, 0
        connections.handle = lambda fd: held.wait() and handle(fd)
        child.next()
        held.set()
        found = child.next()
        snapshot = agent.snapshot()

    assert ["refused"] * 40 == found
    assert 40 == snapshot.refused["busy"]


def test_hello_in_time():
    """A hello that has come is read before its sender is told that none came in time."""
    with registrar() as agent, Child(shouts, agent.path, 1) as child:
        connections = agent.registry._connections
        read, handle, listener = connections._read, connections.handle, connections._listener.fileno()
        connections._read = lambda *_: None
        connections.handle = lambda fd: handle(fd) if fd == listener else None  # nobody comes to it
        child.next()
        machine.until(lambda: agent.snapshot().connections == 1)
        connections._read = read
        for waiting in list(connections._waiting.values()):
            waiting.deadline = 0.0
        found = child.next()

    assert ["welcome"] == found


def test_half_open_places(monkeypatch):
    """When all places for silent connections are taken the oldest of them has to go, not who comes."""
    monkeypatch.setattr(registry_connections, "HALF_OPEN", 8)
    with registrar() as agent, Child(silent, agent.path) as child:
        child.next()
        answer = once(lambda: ask(connect(agent.path), b"no hello")[0], uid=OTHER)
        most = len(agent.registry._connections._waiting)

    assert "protocol" == answer["reason"]
    assert most <= 8


def test_not_allowed_early():
    """A user that is not allowed holds no place for silent connections."""
    with registrar(allow="1") as agent, Child(silent, agent.path) as child:
        child.next()
        snapshot = agent.snapshot()

    assert 0 == snapshot.connections
    assert snapshot.refused["policy"] > 100


def garbage(path):
    """Send what is no hello; return what came back for each."""
    packets = {
        "nothing": b"\0",
        "no json": b"\xff" * 100,
        "deep": b"[" * 500,
        "deep in an unknown member": b'{"type":"hello","protocol":1,"slots":1024,"x":' + b"[" * 400,
        "another message": b'{"type":"welcome","protocol":1,"token":"","programs":{}}',
        "long token": hello("f" * 65),
        "wrong types": hello(protocol="1"),
        "too long": hello() + b" " * 4096,
        "very long": b"x" * 100_000,
    }
    found = {}
    for name, packet in packets.items():
        answer, fds = ask(connect(path), packet)
        found[name] = [answer and answer.get("reason"), len(fds)]
    for name, changes in (("protocol", {"protocol": 2}), ("slots", {"slots": 7})):
        answer, fds = ask(connect(path), hello(**changes))
        found[name] = [answer["reason"], len(fds)]
    twice = connect(path)
    ask(twice, hello())
    found["two hellos"] = [ask(twice, hello())[0], 0]
    return found


def test_garbage():
    """What is no hello is refused with a reason, and the connection closed."""
    with registrar() as agent:
        found = once(garbage, agent.path)
        machine.until(lambda: agent.snapshot().connections == 0)
        snapshot = agent.snapshot()

    versions = {name: found.pop(name) for name in ("protocol", "slots")}
    assert [None, 0] == found.pop("two hellos")
    assert {"protocol": ["version", 0], "slots": ["version", 0]} == versions
    assert {name: ["protocol", 0] for name in found} == found
    assert (0, 0) == (snapshot.connections, snapshot.processes)


def descriptors():
    """How many this process has; those that the agent has for a moment come and go."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def flood_of_fds(path):
    """Send descriptors along, with a hello and without."""
    fd = os.open("/dev/null", os.O_RDONLY)
    answers = []
    for packet in (hello(), b"x"):
        connection = connect(path)
        if outcome(lambda: send_with_fds(connection, packet, [fd] * 200)) == "EPERM":  # noqa: B023  (at once)
            continue
        data, fds, _, _ = socket.recv_fds(connection, 4096, 8)
        answers.append([data.decode(), len(fds)])
    registered = connect(path)
    ask(registered, hello())
    sent = outcome(lambda: [send_with_fds(registered, b"x", [fd] * 200) for _ in range(20)])
    return answers, sent


def test_descriptors_sent():
    """Descriptors that are sent to the agent do not reach it."""
    with registrar() as agent:
        once(lambda: ask(connect(agent.path), hello())[0])  # its thread has what it needs
        machine.until(lambda: agent.snapshot().connections == 0)
        before = descriptors()
        answers, _ = once(flood_of_fds, agent.path)
        machine.until(lambda: descriptors() == before)
        after = descriptors()

    assert before == after
    assert all('"reason":"protocol"' in text and not fds for text, fds in answers)


def test_lingering_descriptors():
    """Where the kernel can, it refuses descriptors at the sender's: closing one may wait as long as that likes."""

    def sends(path):
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        able = outcome(lambda: probe.setsockopt(socket.SOL_SOCKET, 83, 0)) == "ok"
        fd = os.open("/dev/null", os.O_RDONLY)
        before = connect(path)  # perhaps before it is accepted
        answer, _ = ask(later := connect(path), hello())
        yield [able, answer["type"], [outcome(lambda: send_with_fds(c, hello(), [fd])) for c in (before, later)]]  # noqa: B023

    with registrar() as agent, Child(sends, agent.path) as child:
        able, answer, outcomes = child.next()

    assert "welcome" == answer
    assert (["EPERM"] * 2 if able else ["ok"] * 2) == outcomes


def churn(path, number):
    """Register, leave, again and again."""
    reasons = {}
    for _ in range(number):
        answer, fds = ask(connect(path), hello())
        for fd in fds:
            os.close(fd)
        word = "closed" if answer is None else answer.get("reason", answer["type"])
        reasons[word] = reasons.get(word, 0) + 1
    return reasons


def test_churn():
    """Thousands of registrations of one user are slowed down, leave nothing behind, and do not touch another's."""
    with registrar() as agent, Child(staying, agent.path, uid=OTHER) as innocent:
        innocent.next()
        machine.until(lambda: descriptors() == (time.sleep(0.05), descriptors())[1])  # it closes what it has sent
        before = descriptors()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reasons = once(churn, agent.path, 600)
        machine.until(lambda: agent.snapshot().connections == 1)
        machine.until(lambda: agent.snapshot().tables == 1)
        machine.until(lambda: descriptors() == before)
        snapshot, after = agent.snapshot(), descriptors()
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        in_force = len(agent.in_force())
        alive = innocent.next()

    assert before == after
    assert (1, 1, 0) == (snapshot.processes, snapshot.tables, snapshot.retired)
    assert 1 == in_force
    assert reasons["welcome"] >= 64
    assert reasons["rate"] > 100
    assert grown_kib < 8 * 1024
    assert "mine" == alive[1]


def never_reads(path):
    """Register, and read nothing that the agent says."""
    connection = connect(path)
    connection.send(hello())
    yield "sent"
    time.sleep(60)


def test_slow_reader():
    """A process that does not read what the agent says is forgotten, and the agent waits for nobody."""
    with registrar() as agent, Child(never_reads, agent.path) as child:
        child.next()
        machine.until(lambda: agent.snapshot().processes == 1)
        for number in range(4000):
            agent.registry.set_programs({"sched": number, "padding" * 100: number})
            if agent.snapshot().processes == 0:
                break
            time.sleep(0.001)
        machine.until(lambda: agent.snapshot().processes == 0)
        other = once(lambda: ask(connect(agent.path), hello())[0], uid=OTHER)

        assert 0 == len(agent.in_force())
        assert "welcome" == other["type"]


def test_many_connections():
    """A process that registers again and again has one connection: the earlier ones are closed."""

    def again(path):
        made = [connect(path) for _ in range(8)]
        yield [ask(each, hello())[0]["type"] for each in made]
        yield [each.recv(1) == b"" for each in made[:-1]]

    with registrar() as agent, Child(again, agent.path) as child:
        said = child.next()
        snapshot = agent.snapshot()
        closed = child.next()

    assert ["welcome"] * 8 == said
    assert [True] * 7 == closed
    assert (1, 1, 7) == (snapshot.connections, snapshot.processes, snapshot.forgotten["replaced"])
