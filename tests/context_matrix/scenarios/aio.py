# SPDX-License-Identifier: Apache-2.0
"""Coroutines, on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import signal
import socket
import sys

import oracle
from oracle import check, span

from scenarios import Scenario
from scenarios.plain import levels

_HERE = []


def _asynchronous(function=None, **options):
    """Take in a coroutine function, for every kind of loop."""
    if function is None:
        return functools.partial(_asynchronous, **options)
    _HERE.append((function, options))
    return function


async def steps(turns=5):
    """Spans in spans, with a turn given to others in between."""
    check()
    for number in range(turns):
        with span("step"):
            check()
            await asyncio.sleep(0)
            check()
            with span("inner"):
                await asyncio.sleep(0.0005 * (number % 3))
                check()
            check()
        check()
        await asyncio.sleep(0)
        check()


@_asynchronous(quick=True)
async def gather():
    with span("gathers"):
        check()
        await asyncio.gather(*(steps() for _ in range(6)))
        check()
    await asyncio.gather(*(steps() for _ in range(6)))
    check()


@_asynchronous(quick=True)
async def task_group():
    with span("group"):
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(steps())
                check()
            check()
        check()
    check()


@_asynchronous(quick=True)
async def given_contexts():
    loop = asyncio.get_running_loop()
    with span("given"):
        tasks = [loop.create_task(steps(3), context=contextvars.Context()) for _ in range(3)]
        tasks += [loop.create_task(steps(3), context=contextvars.copy_context()) for _ in range(3)]
        await asyncio.wait(tasks)
        check()


@_asynchronous(since=(3, 12))
async def eager_tasks():
    async def quick():
        check()
        with span("eager"):
            check()

    def eager(loop, coroutine, *, eager_start=True, **options):
        # as asyncio.eager_task_factory, which in some releases refuses what uvloop passes
        return asyncio.Task(coroutine, loop=loop, eager_start=True, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(eager)
    try:
        with span("starts"):
            for _ in range(5):
                task = asyncio.create_task(steps(3))  # runs to its first wait
                check()
                await asyncio.create_task(quick())
                check()
                await task
                check()
    finally:
        loop.set_task_factory(None)
    check()


@_asynchronous(quick=True)
async def to_thread():
    with span("asks"):
        for done in asyncio.as_completed([asyncio.to_thread(levels, 2) for _ in range(12)]):
            await done
            check()
    check()


@_asynchronous(quick=True)
async def run_in_executor():
    loop = asyncio.get_running_loop()
    with span("asks"):
        await asyncio.gather(*(loop.run_in_executor(None, levels, 2) for _ in range(12)), steps())
        check()


@_asynchronous(quick=True)
async def call_later():
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def called(left):
        check()
        with span("called"):
            check()
            if left:
                loop.call_soon(called, left - 1)
                loop.call_later(0.0005, called, left - 1)
                loop.call_at(loop.time() + 0.0005, called, left - 1, context=contextvars.Context())
            check()
        check()

    with span("calls"):
        called(3)
        loop.call_later(0.1, done.set)
        await steps()
        await done.wait()
        check()


@_asynchronous(quick=True)
async def call_soon_threadsafe():
    loop = asyncio.get_running_loop()
    left = [20]
    done = asyncio.Event()

    def called():
        levels(1)
        left[0] -= 1
        if not left[0]:
            done.set()

    def from_thread():
        with span("in a thread"):
            for _ in range(10):
                loop.call_soon_threadsafe(called)
                check()

    with span("waits"):
        await asyncio.gather(*(loop.run_in_executor(None, from_thread) for _ in range(2)), steps())
        await done.wait()
        check()


@_asynchronous(quick=True)
async def add_reader():
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    done = asyncio.Event()
    got = []

    def readable():
        check()
        got.append(ours.recv(1))
        with span("reads"):
            check()
        if len(got) == 10:
            loop.remove_reader(ours)
            done.set()
        check()

    def writable():
        levels(1)
        loop.remove_writer(theirs)

    with span("registers"):
        loop.add_reader(ours, readable)
        loop.add_writer(theirs, writable)
    for _ in range(10):
        with span("writes"):
            theirs.send(b"x")
            await asyncio.sleep(0.001)
            check()
    await done.wait()
    check()
    ours.close()
    theirs.close()


async def _client(port, turns=5):
    check()
    with span("client"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(turns):
            with span("asks"):
                writer.write(b"hello\n")
                await writer.drain()
                check()
                await reader.readline()
                check()
        writer.close()
        await writer.wait_closed()
        check()
    check()


@_asynchronous(quick=True)
async def streams():
    async def serve(reader, writer):
        check()
        while line := await reader.readline():
            check()
            with span("answers"):
                check()
                await asyncio.sleep(0)
                writer.write(line)
                await writer.drain()
                check()
        writer.close()
        check()

    with span("serves"):
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        check()
    async with server:
        await asyncio.gather(*(_client(server.sockets[0].getsockname()[1]) for _ in range(6)))
    check()


class _Echo(asyncio.Protocol):
    """Answers from the transport's callbacks, which are in no task."""

    def connection_made(self, transport):
        levels(1)
        self.transport = transport

    def data_received(self, data):
        check()
        with span("received"):
            self.transport.write(data)
            check()
        check()

    def eof_received(self):
        levels(1)

    def connection_lost(self, error):
        levels(1)


@_asynchronous(quick=True)
async def protocols():
    loop = asyncio.get_running_loop()
    with span("listens"):
        server = await loop.create_server(_Echo, "127.0.0.1", 0)
    async with server:
        await asyncio.gather(*(_client(server.sockets[0].getsockname()[1]) for _ in range(6)))
    check()


@_asynchronous(quick=True)
async def datagrams():
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    left = [10]

    class Receiver(asyncio.DatagramProtocol):
        def datagram_received(self, data, address):
            levels(1)
            left[0] -= 1
            if not left[0]:
                done.set()

    with span("listens"):
        transport, _ = await loop.create_datagram_endpoint(Receiver, local_addr=("127.0.0.1", 0))
    address = transport.get_extra_info("sockname")
    for _ in range(10):
        with span("sends"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", address)
            await asyncio.sleep(0.001)
            check()
    await done.wait()
    transport.close()
    await asyncio.sleep(0)
    check()


@_asynchronous(quick=True)
async def sockets():
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)

    async def receive():
        for _ in range(10):
            with span("receives"):
                await loop.sock_recv(ours, 1)
                check()

    async def send():
        for _ in range(10):
            with span("sends"):
                await loop.sock_sendall(theirs, b"x")
                check()
            await asyncio.sleep(0)
            check()

    await asyncio.gather(receive(), send(), steps())
    ours.close()
    theirs.close()


@_asynchronous(quick=True)
async def done_callbacks():
    def called(_future):
        levels(1)

    with span("adds"):
        task = asyncio.create_task(steps(2))
        for _ in range(5):
            task.add_done_callback(called)
        task.add_done_callback(called, context=contextvars.Context())
    await task
    await asyncio.sleep(0)
    check()


@_asynchronous(quick=True)
async def cancelled():
    async def forever():
        with span("forever"):
            try:
                while True:
                    await asyncio.sleep(0.0003)
                    check()
            finally:
                check()

    for _ in range(5):
        with span("times out"):
            try:
                async with asyncio.timeout(0.003):
                    await forever()
            except TimeoutError:
                check()
            try:
                await asyncio.wait_for(forever(), 0.003)
            except TimeoutError:
                check()
        check()


@_asynchronous(quick=True)
async def queues():
    queue = asyncio.Queue(2)

    async def produce():
        for number in range(15):
            with span("puts"):
                await queue.put(number)
                check()

    async def consume():
        for _ in range(15):
            check()
            with span("gets"):
                await queue.get()
                check()
            check()

    await asyncio.gather(produce(), consume(), produce(), consume())


@_asynchronous(quick=True)
async def async_generators():
    async def spans():
        for _ in range(5):
            with span("in a generator"):
                check()
                yield
                await asyncio.sleep(0)
                check()

    async def consume():
        async for _ in spans():
            check()
            await asyncio.sleep(0)
            check()
        check()

    with span("gathers"):
        await asyncio.gather(*(consume() for _ in range(4)))
    check()


@_asynchronous(quick=True)
async def child_processes():
    with span("runs"):
        process = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "print(1)", stdout=-1)
        check()
        await asyncio.gather(process.communicate(), steps())
        check()
    check()


@_asynchronous(quick=True)
async def loop_signal_handlers():
    loop = asyncio.get_running_loop()
    with span("registers"):
        loop.add_signal_handler(signal.SIGUSR1, levels, 1)
    for _ in range(10):
        with span("sends"):
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.sleep(0.001)
            check()
    loop.remove_signal_handler(signal.SIGUSR1)


async def _started_late():
    """The library starts while the loop runs, in a task with a span, and others wait in theirs."""
    go = asyncio.Event()

    async def waits():
        with span("waits"):
            await go.wait()
            check()
            await steps()
            check()

    waiting = [asyncio.create_task(waits()) for _ in range(4)]
    await asyncio.sleep(0)
    with span("starts"):
        oracle.start()
        check()
        go.set()
        await asyncio.gather(*waiting)
        check()
    check()
    await gather()


def _on(factory, function):
    def run():
        with asyncio.Runner(loop_factory=factory and factory()) as runner:
            runner.run(function())

    return run


def _uvloop():
    import uvloop

    return uvloop.new_event_loop


def _all(family, factory, needs):
    for function, options in _HERE:
        yield Scenario(family, function.__name__.replace("_", " "), _on(factory, function), needs=needs, **options)
    yield Scenario(family, "already running loop", _on(factory, _started_late), needs=needs, alone=True)


SCENARIOS = [*_all("asyncio", None, ()), *_all("uvloop", _uvloop, ("uvloop",))]
