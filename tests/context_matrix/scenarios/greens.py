# SPDX-License-Identifier: Apache-2.0
"""Greenlets: by hand, under gevent, under eventlet."""

from __future__ import annotations

import time

import oracle
from oracle import check, span

from scenarios import Collector
from scenarios.plain import levels

SCENARIOS = scenario = Collector()


@scenario("greenlet", quick=True, needs=("greenlet",))
def switches():
    """Greenlets that hand over to each other, each in a span of its own."""
    import greenlet

    main = greenlet.getcurrent()

    def work():
        check()
        for _ in range(5):
            with span("in a greenlet"):
                check()
                main.switch()
                check()
            main.switch()
            check()

    workers = [greenlet.greenlet(work) for _ in range(4)]
    with span("switches"):
        while any(not worker.dead for worker in workers):
            for worker in workers:
                if not worker.dead:
                    worker.switch()
                    check()
    check()


@scenario("greenlet", quick=True, needs=("greenlet",))
def throws():
    import greenlet

    main = greenlet.getcurrent()

    def work():
        with span("in a greenlet"):
            try:
                main.switch()
            finally:
                check()

    for _ in range(10):
        with span("throws"):
            worker = greenlet.greenlet(work)
            worker.switch()
            check()
            worker.throw(greenlet.GreenletExit)
            check()
        check()


@scenario("greenlet", quick=True, needs=("greenlet",))
def contexts_given():
    """A greenlet may be given a context before it runs, and take it out of another one."""
    import contextvars

    import greenlet

    main = greenlet.getcurrent()

    def work():
        check()
        main.switch()
        levels(2)

    for _ in range(10):
        with span("gives"):
            worker = greenlet.greenlet(work)
            worker.gr_context = contextvars.copy_context()
            worker.switch()
            check()
        worker.switch()
        check()


@scenario("greenlet", quick=True, needs=("greenlet",))
def another_tracer():
    """Somebody sets a tracer of their own, which calls the one that was there."""
    import greenlet

    seen = []

    def trace(event, args):
        seen.append(event)
        if previous is not None:
            previous(event, args)

    previous = greenlet.settrace(trace)
    try:
        switches()
    finally:
        greenlet.settrace(previous)
    if not seen:
        raise AssertionError("the other tracer was not called")


@scenario("greenlet", quick=True, needs=("greenlet",), excused="a greenlet tracer that does not call the one before it")
def tracer_replaced():
    """Somebody sets a tracer of their own, which does not; and puts back what was there."""
    import greenlet

    previous = greenlet.settrace(lambda _event, _args: None)
    try:
        switches()
    finally:
        greenlet.settrace(previous)
    switches()


@scenario("greenlet", quick=True, needs=("greenlet",))
def in_threads():
    import threading

    workers = [threading.Thread(target=switches) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    check()


def _gevent_steps(turns=5):
    import gevent

    check()
    for number in range(turns):
        with span("step"):
            check()
            gevent.sleep(0.0005 * (number % 3))
            check()
            with span("inner"):
                gevent.sleep(0)
                check()
            check()
        gevent.sleep(0)
        check()


@scenario("gevent", quick=True, needs=("gevent",))
def spawn():
    import gevent

    with span("spawns"):
        jobs = [gevent.spawn(_gevent_steps) for _ in range(6)]
        check()
        gevent.joinall(jobs)
        check()
    check()


@scenario("gevent", quick=True, needs=("gevent",))
def pools_and_events():
    import gevent
    import gevent.event
    import gevent.pool

    event = gevent.event.Event()

    def wait():
        with span("waits"):
            event.wait()
            check()
        check()

    pool = gevent.pool.Pool(4)
    with span("pool"):
        waiting = [gevent.spawn(wait) for _ in range(3)]
        pool.map(lambda _: _gevent_steps(2), range(8))
        check()
        event.set()
        gevent.joinall(waiting)
        gevent.spawn_later(0.001, levels, 1).join()
        check()
    check()


@scenario("gevent", quick=True, needs=("gevent",))
def thread_pool():
    import gevent

    pool = gevent.get_hub().threadpool
    with span("asks"):
        jobs = [pool.spawn(levels, 2) for _ in range(8)]
        _gevent_steps(2)
        for job in jobs:
            job.get()
            check()
    check()


@scenario("gevent", "loop callbacks", quick=True, needs=("gevent",))
def callbacks():
    import gevent

    hub = gevent.get_hub()
    with span("registers"):
        hub.loop.run_callback(levels, 1)
        timer = hub.loop.timer(0.001)
        timer.start(levels, 1)
        _gevent_steps(2)
        check()
    timer.close()


@scenario("gevent", "monkey patched", quick=True, needs=("gevent",), alone=True)
def gevent_patched():
    from gevent import monkey

    monkey.patch_all()
    oracle.start()
    _patched()
    spawn()


def _patched():
    """Threads, which are greenlets now, sleeping and talking over sockets."""
    import socket
    import threading
    from concurrent.futures import ThreadPoolExecutor

    def serve(server):
        for _ in range(6):
            peer, _address = server.accept()
            with peer, span("answers"):
                peer.sendall(peer.recv(10))
                check()
            check()

    def client(port):
        with span("client"), socket.create_connection(("127.0.0.1", port)) as connection:
            for _ in range(3):
                time.sleep(0.0005)
                check()
            connection.sendall(b"hello")
            connection.recv(10)
            check()
        check()

    with socket.create_server(("127.0.0.1", 0)) as server:
        workers = [threading.Thread(target=serve, args=(server,))]
        workers += [threading.Thread(target=client, args=(server.getsockname()[1],)) for _ in range(6)]
        with span("starts"):
            for worker in workers:
                worker.start()
            check()
        for worker in workers:
            worker.join()
            check()
    with ThreadPoolExecutor(4) as pool, span("submits"):
        list(pool.map(levels, [2] * 8))
        check()


@scenario("eventlet", needs=("eventlet",), alone=True)
def green_pool():
    import eventlet

    def steps(number):
        check()
        for turn in range(5):
            with span("step"):
                check()
                eventlet.sleep(0.0005 * ((turn + number) % 3))
                check()
            check()
            eventlet.sleep(0)
            check()

    oracle.start()
    pool = eventlet.GreenPool(4)
    with span("pool"):
        for number in range(8):
            pool.spawn(steps, number)
        check()
        pool.waitall()
        check()
    check()


@scenario("eventlet", "monkey patched", needs=("eventlet",), alone=True)
def eventlet_patched():
    import eventlet

    eventlet.monkey_patch()
    oracle.start()
    _patched()
