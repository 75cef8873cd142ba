# SPDX-License-Identifier: Apache-2.0
"""Starlette and FastAPI under uvicorn: a real server, real requests."""

from __future__ import annotations

import asyncio
import socket
import threading

from oracle import check, span

from scenarios import Scenario, http_client
from scenarios.plain import levels


async def _work():
    """What every handler does."""
    check()
    with span("handler"):
        check()
        await asyncio.sleep(0.001)
        check()
        await asyncio.gather(_part(), _part())
        await asyncio.to_thread(levels, 1)
        check()
    check()


async def _part():
    with span("part"):
        await asyncio.sleep(0.0005)
        check()


def _blocking():
    """A handler that is no coroutine, which the framework gives to a thread."""
    check()
    with span("blocking handler"):
        levels(2)
    check()


async def _chunks():
    with span("streams"):
        for _ in range(3):
            check()
            yield b"x"
            await asyncio.sleep(0)
            check()


class _Middleware:
    """A span around every request, as instrumentations make it; the server's own calls are below it too."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        check()
        with span("request"):
            check()
            await self.app(scope, self._checked(receive), self._checked(send))
            check()
        check()

    def _checked(self, call):
        async def checked(*args):
            check()
            result = await call(*args)
            check()
            return result

        return checked


def _starlette():
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    async def work(_request):
        await _work()
        return PlainTextResponse("done", background=BackgroundTask(levels, 1))

    def blocking(_request):
        _blocking()
        return PlainTextResponse("done")

    async def streaming(_request):
        return StreamingResponse(_chunks())

    return Starlette(routes=[Route("/work", work), Route("/blocking", blocking), Route("/streaming", streaming)])


def _fastapi():
    import fastapi
    from fastapi.responses import StreamingResponse

    app = fastapi.FastAPI()

    async def dependency():
        check()
        with span("dependency"):
            check()
            yield
            check()

    def blocking_dependency():
        levels(1)

    async def work(tasks):
        await _work()
        tasks.add_task(levels, 1)
        return {}

    work.__annotations__["tasks"] = fastapi.BackgroundTasks  # as text it is looked up where a late import is not
    depends = [fastapi.Depends(dependency), fastapi.Depends(blocking_dependency)]
    app.get("/work", dependencies=depends)(work)

    @app.get("/blocking")
    def blocking():
        _blocking()
        return {}

    @app.get("/streaming")
    async def streaming():
        return StreamingResponse(_chunks())

    return app


def _serve(application, loop):
    def run():
        import uvicorn

        with socket.create_server(("127.0.0.1", 0)) as listener:
            config = uvicorn.Config(_Middleware(application()), loop=loop, log_level="error", lifespan="off")
            server = uvicorn.Server(config)
            problems = []
            client = threading.Thread(target=_ask, args=(listener.getsockname()[1], server, problems))
            client.start()
            server.run(sockets=[listener])
            client.join()
        if problems:
            raise problems[0]

    return run


def _ask(port, server, problems):
    try:
        http_client.load(port, ("/work", "/blocking", "/streaming"))
    except Exception as error:  # noqa: BLE001  (raised where the scenario is)
        problems.append(error)
    finally:
        server.should_exit = True


SCENARIOS = [
    Scenario(
        f"{name} under uvicorn",
        f"on {loop}",
        _serve(application, loop),
        quick=(name, loop) == ("FastAPI", "uvloop"),
        needs=(name.lower(), "uvicorn", *(("uvloop",) if loop == "uvloop" else ())),
    )
    for name, application in (("Starlette", _starlette), ("FastAPI", _fastapi))
    for loop in ("uvloop", "asyncio")
]
