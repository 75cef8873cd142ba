# SPDX-License-Identifier: Apache-2.0
"""Flask and Django under gunicorn: a real arbiter and a real worker, of each class."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import oracle
from oracle import check, span

from scenarios import Scenario, http_client
from scenarios.plain import levels

# --- in the worker


def work():
    """What every view does."""
    check()
    with span("view"):
        check()
        time.sleep(0.002)
        check()
        levels(2)
    check()
    return "done"


def chunks():
    """A body that is made while it is sent."""
    for _ in range(3):
        with span("chunk"):
            check()
            time.sleep(0.0005)
            check()
        check()
        yield b"x"


class Application:
    """The framework's application in a span for each request; starts the library at the worker's first request."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, environ, start_response):
        """Answer a request."""
        if environ["PATH_INFO"] == "/start":
            return self._answer(start_response, self._start())
        if environ["PATH_INFO"] == "/verdict":
            return self._answer(start_response, oracle.oracle().verdict())
        check()
        with span("request"):
            check()
            body = self.inner(environ, start_response)
            check()
        check()
        return body

    def _start(self):
        try:
            oracle.start()
        except oracle.NotRun as error:
            return {"not run": str(error)}
        return {}

    def _answer(self, start_response, value):
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(value).encode()]


def flask():
    """What gunicorn loads."""
    import flask

    app = flask.Flask("matrix")
    app.add_url_rule("/work", "work", work)
    app.add_url_rule("/streaming", "streaming", lambda: flask.Response(chunks()))
    return Application(app)


def django():
    """What gunicorn loads."""
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    def urls():
        yield path("work", lambda _request: HttpResponse(work()))
        yield path("streaming", lambda _request: StreamingHttpResponse(chunks()))

    module = type(sys)("matrix_urls")
    module.urlpatterns = list(urls())
    sys.modules["matrix_urls"] = module
    settings.configure(ROOT_URLCONF="matrix_urls", ALLOWED_HOSTS=["*"], SECRET_KEY="x")
    django.setup()
    return Application(WSGIHandler())


# --- in the scenario's process


def _serve(application, worker):
    def run():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            command = [
                sys.executable, "-m", "gunicorn", f"scenarios.wsgi:{application}()", "--workers", "1",
                "--worker-class", worker, "--bind", f"fd://{listener.fileno()}", "--log-level", "error",
                "--no-control-socket",
            ]  # fmt: skip
            if worker == "gthread":
                command += ["--threads", "4"]
            folder = Path(__file__).parents[1]  # gunicorn puts it on the path; not the source tree
            server = subprocess.Popen(command, pass_fds=[listener.fileno()], cwd=folder)
            try:
                answer = json.loads(http_client.get(port, "/start"))
                if "not run" in answer:
                    raise oracle.NotRun(answer["not run"])
                http_client.load(port, ("/work", "/streaming"))
                oracle.oracle().add(json.loads(http_client.get(port, "/verdict")))
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(30)

    return run


SCENARIOS = [
    Scenario(
        f"{name} under gunicorn",
        worker,
        _serve(name.lower(), worker),
        quick=(name, worker) == ("Flask", "gthread"),
        needs=(name.lower(), "gunicorn", *(("gevent",) if worker == "gevent" else ())),
    )
    for name in ("Flask", "Django")
    for worker in ("sync", "gthread", "gevent")
]
