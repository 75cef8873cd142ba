# SPDX-License-Identifier: Apache-2.0
"""Structured concurrency: anyio on both of its backends, and trio."""

from __future__ import annotations

import functools

from oracle import check, span

from scenarios import Collector, Scenario
from scenarios.plain import levels

trio_scenario = Collector()


async def _anyio_steps(turns=5):
    import anyio

    check()
    for number in range(turns):
        with span("step"):
            check()
            await anyio.sleep(0.0005 * (number % 3))
            check()
            with span("inner"):
                await anyio.lowlevel.checkpoint()
                check()
            check()
        check()
        await anyio.lowlevel.checkpoint()
        check()


async def _anyio_tasks():
    import anyio

    with span("group"):
        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(_anyio_steps)
                check()
        check()
    check()


async def _anyio_threads():
    import anyio

    async def back():
        check()
        await anyio.lowlevel.checkpoint()
        with span("back in the loop"):
            check()

    def work():
        levels(1)
        with span("in a thread"):
            anyio.from_thread.run(back)
            check()
            anyio.from_thread.run_sync(levels, 1)
            check()
        check()

    async with anyio.create_task_group() as group:
        with span("asks"):
            for _ in range(6):
                group.start_soon(anyio.to_thread.run_sync, work)
            await anyio.to_thread.run_sync(work)
            check()
        check()
    check()


async def _anyio_cancelled():
    import anyio

    async def forever():
        with span("forever"):
            try:
                while True:
                    await anyio.sleep(0.0005)
                    check()
            finally:
                check()

    for _ in range(5):
        with span("times out"):
            with anyio.move_on_after(0.003):
                await forever()
            check()
        check()


async def _anyio_streams():
    import anyio

    async def serve(stream):
        check()
        async with stream:
            with span("answers"):
                await stream.send(await stream.receive())
                check()
        check()

    async def client(port):
        with span("client"):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"hello")
                check()
                await stream.receive()
                check()
        check()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with anyio.create_task_group() as group:
        with span("serves"):
            group.start_soon(listener.serve, serve)
        async with anyio.create_task_group() as clients:
            for _ in range(6):
                clients.start_soon(client, port)
        group.cancel_scope.cancel()
    await listener.aclose()


def _anyio(backend, function):
    def run():
        import anyio
        import anyio.abc
        import anyio.from_thread
        import anyio.lowlevel
        import anyio.to_thread

        anyio.run(
            function, backend=backend.split()[0], backend_options={"use_uvloop": True} if "uvloop" in backend else {}
        )

    return run


def _trio(function):
    @functools.wraps(function)
    def run():
        import trio

        trio.run(function)

    return run


@trio_scenario("trio", quick=True)
@_trio
async def nursery():
    import trio

    async def steps():
        for number in range(6):
            with span("step"):
                check()
                await trio.sleep(0.0005 * (number % 3))
                check()
            check()
            await trio.lowlevel.checkpoint()
            check()

    with span("nursery"):
        async with trio.open_nursery() as group:
            for _ in range(6):
                group.start_soon(steps)
                check()
            await steps()
        check()


@trio_scenario("trio", quick=True)
@_trio
async def threads():
    import trio

    def work():
        levels(1)
        with span("in a thread"):
            trio.from_thread.run_sync(levels, 1)
            check()

    async with trio.open_nursery() as group:
        with span("asks"):
            for _ in range(6):
                group.start_soon(trio.to_thread.run_sync, work)
            await trio.to_thread.run_sync(work)
            check()
    check()


SCENARIOS = [
    Scenario(
        f"anyio on {backend}",
        function.__name__.removeprefix("_anyio_"),
        _anyio(backend, function),
        quick=backend == "asyncio",
        needs=("anyio", *(name for name in backend.split() if name not in ("asyncio", "with"))),
    )
    for backend in ("asyncio", "asyncio with uvloop", "trio")
    for function in (_anyio_tasks, _anyio_threads, _anyio_cancelled, _anyio_streams)
] + trio_scenario
