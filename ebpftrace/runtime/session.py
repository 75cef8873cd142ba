# SPDX-License-Identifier: Apache-2.0
"""start(), stop() and what lies between.

One library runs in a process at a time. It fails quietly: an application that calls `start()` on a machine where
nothing works goes on exactly as it would without, with one log line that says why.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from ebpftrace.errors import BpfError, EbpftraceError, UnsupportedError
from ebpftrace.settings import SAMPLED, Settings, resolve
from ebpftrace.spans.green import in_real_thread, threads_are_greenlets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ebpftrace.runtime.by_agent import AgentSide
    from ebpftrace.runtime.loader import KernelSide
    from ebpftrace.runtime.otel import ProviderBinding
    from ebpftrace.runtime.process_context import ProcessContext
    from ebpftrace.spans.pipeline import SdkPipeline
    from ebpftrace.spans.reader import Reader

logger = logging.getLogger("ebpftrace")

_locks: dict[bool, threading.RLock] = {}
_session: Session | None = None
_starting: Session | None = None
_stopped: Session | None = None
_fork_handler_installed = False
_WORKER_FLUSH_S = 2.0
_imported = False


def _lock() -> threading.RLock:
    """The lock of start() and stop(), of the kind that threads are now: real ones or greenlets."""
    return _locks.setdefault(threads_are_greenlets(), threading.RLock())


def _call(function: Callable[..., None], *args: object) -> None:
    function(*args)


class Session:
    """A running library; what `start()` returns. Also a context manager, which stops it.

    Attributes:
        settings: what it was started with.
        active: kernel tracing is on.
        reason: why not, in words; "" when it is.
    """

    def __init__(self, settings: Settings, load: Callable[..., None] = _call) -> None:
        self.settings = settings
        self._load = load
        self._pid = os.getpid()
        self.active = False
        self.reason = ""
        self._stopped = False
        self._kernel: KernelSide | AgentSide | None = None
        self._pipeline: SdkPipeline | None = None
        self._reader: Reader | None = None
        self._binding: ProviderBinding | None = None
        self._context: ProcessContext | None = None
        self._forked = False
        self._quiet = False  # the parent of this fork has said already that kernel tracing is off
        self._last_stats: dict[str, Any] = {}
        self._counting = threading.Lock()  # the kernel's counters are read; its maps must not go meanwhile

    def _start(self) -> None:
        """Bring everything up; whatever the environment lacks is one log line."""
        try:
            _refuse_early(self.settings)
            self._bring_up()
        except EbpftraceError as error:
            self._tear_down(keep_output=bool(self.settings.output), keep_context=True)
            self.reason = _explain(error)
            logger.log(logging.DEBUG if self._quiet else logging.WARNING, "kernel tracing is off: %s", self.reason)
            self._publish_without_kernel()
        except Exception as error:  # a bug of ours must not end the application
            self._tear_down()
            self.reason = f"{type(error).__name__}: {error}"
            logger.exception("kernel tracing is off because of an error in ebpftrace")
        else:
            self.active = True

    def _bring_up(self) -> None:
        from ebpftrace.context import _publisher, hooks, sockets
        from ebpftrace.runtime.by_agent import AgentSide
        from ebpftrace.runtime.otel import ProviderBinding
        from ebpftrace.runtime.process_context import ProcessContext
        from ebpftrace.spans.clock import namespace_offset_ns

        global _imported  # noqa: PLW0603
        _imported = True
        if _publisher.armed_elsewhere():  # before this holds anything, so that _tear_down() leaves theirs alone
            raise UnsupportedError("ebpftrace in this interpreter", "another one of this process publishes already")
        settings = self.settings
        if settings.otel_context:
            self._context = ProcessContext()
            self._context.open()
        self._binding = ProviderBinding(
            self.flush,
            service_name=settings.service_name,
            output=settings.output,
            follow_threads=self._follow_threads,
        )
        kernel = self._bring_up_kernel()
        if isinstance(kernel, AgentSide):
            kernel.arm()
        else:
            self._read(kernel)
            self._use(kernel.bits())
            _publisher.arm(kernel.slots.fd, kernel.lines.fd, namespace_offset_ns())
        sockets.arm(kernel.ties(), namespace_offset_ns())
        hooks.install(_restart_in_child, settings.context_hooks)

    def _bring_up_kernel(self) -> KernelSide | AgentSide:
        """Load the programs, or have the agent's, where this process may load none or the settings say so."""
        from ebpftrace.runtime import by_agent
        from ebpftrace.runtime.loader import KernelSide

        settings, refused = self.settings, None
        if not by_agent.wanted_first(settings):
            # known before it holds anything: the child of a fork must let go of it
            self._kernel = kernel = KernelSide()
            try:
                self._load(kernel.load, settings)
            except EbpftraceError as error:
                if settings.agent_socket == by_agent.NEVER or not by_agent.lacks_privilege(error):
                    raise
                kernel.close()
                refused = error
            else:
                return kernel
        self._kernel = agent = by_agent.AgentSide(settings, self._use, self._measure_nothing)
        try:
            self._load(agent.connect)
        except EbpftraceError as error:
            raise refused_twice(refused, error) if refused is not None else error from None
        return agent

    def _read(self, kernel: KernelSide) -> None:
        """Read the records of programs that are this process's own."""
        from ebpftrace.spans.pipeline import SdkPipeline
        from ebpftrace.spans.reader import Reader

        if not kernel.programs:
            raise UnsupportedError("every program", "; ".join(str(error) for error in kernel.failed.values()))
        assert self._binding is not None  # noqa: S101
        rings = {number: program.events for number, program in enumerate(kernel.programs)}
        layouts = {number: program.layouts for number, program in enumerate(kernel.programs)}
        self._pipeline = SdkPipeline(layouts, self._binding.emit)
        self._reader = Reader(rings, self._pipeline.consume)

    def _use(self, bits: Mapping[str, int]) -> None:
        """These programs act, by these bits; an agent may change that while this runs."""
        from ebpftrace.context import _publisher
        from ebpftrace.context.enable import set_program_bits

        set_program_bits(bits)
        _publisher.set_default_mask(_default_mask(self.settings))
        if self._binding is not None:
            self._binding.measure(on=self.settings.breakdown and "sched" in bits)

    def _measure_nothing(self) -> None:
        """Nobody counts, for a while at least."""
        if self._binding is not None:
            self._binding.measure(on=False)

    def _publish_without_kernel(self) -> None:
        """Go on publishing for the readers that the process context tells of it."""
        if self._context is None or not self._context.published:
            return
        from ebpftrace.context import hooks, own_table

        try:
            own_table.arm()
        except OSError as error:
            logger.warning("contexts are published to nobody: %s", error)
            self._context.close()
        else:
            hooks.install(_restart_in_child, self.settings.context_hooks)

    def _tear_down(self, *, keep_output: bool = False, keep_context: bool = False) -> None:
        """Take everything down, in the order in which nothing is used after it is gone; idempotent.

        Args:
            keep_output: leave the output file to the application's spans, of which there are some all the same.
            keep_context: leave the process context, of which others may have use all the same.
        """
        from ebpftrace.runtime.stats import collect

        if self._kernel is not None or self._context is not None:
            from ebpftrace.context import _publisher, hooks, sockets
            from ebpftrace.context.enable import set_program_bits
            from ebpftrace.runtime.by_agent import AgentSide

            if isinstance(self._kernel, AgentSide):
                self._kernel.close()  # before: its thread may be changing the table
            _publisher.disarm()  # before: what is published must not outlive those who keep it right
            hooks.uninstall()
            sockets.disarm()
            _publisher.set_default_mask(0)
            set_program_bits({})
        for program in self._kernel.programs if self._kernel else ():
            program.object.detach()  # no new records; the reader empties the rings
        emptied = self._reader.close() if self._reader is not None else True
        if self._binding is not None and not keep_output:
            self._binding.close()
        if self._context is not None and not keep_context:
            self._context.close()
        self.active = False
        with self._counting:
            self._last_stats = collect(self)
            self._reader = None
            if self._kernel is not None and emptied:
                self._kernel.close()
                self._kernel = None

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Bring every record that the kernel has submitted so far into the provider; False when time ran out.

        The provider's exporter is not flushed: `TracerProvider.force_flush()` does that, and calls this first.
        """
        _notice_fork()
        reader = self._reader
        return reader.flush(timeout_s) if reader is not None else True

    def _follow_threads(self) -> None:
        if self._reader is not None:
            self._reader.follow_threads()

    def stats(self) -> dict[str, Any]:
        """Return what was read, made and lost, by program and reason: nothing is lost without a count here."""
        from ebpftrace.runtime.stats import collect, collect_publishing

        _notice_fork()
        with self._counting:
            if not self._last_stats:
                return collect(self)
            now: dict[str, Any] = {"active": self.active, "reason": self.reason}
            if not self._stopped and self._context is not None and self._context.published:
                now |= collect_publishing(self)
            return self._last_stats | now

    def stop(self) -> None:
        """Detach everything and bring in the last records; idempotent."""
        global _session, _stopped
        _notice_fork()
        reader = self._reader
        if reader is not None and reader.current:  # an exporter that stops us: that thread cannot wait for itself
            threading.Thread(target=self.stop, name="ebpftrace-stop").start()
            return
        with _lock():
            if not self._stopped:
                self._stopped = True
                self._tear_down()
                self.reason = "it was stopped"
            if _session is self:
                _session, _stopped = None, self

    def _forget(self) -> None:
        """In the child of a fork: what runs is the parent's."""
        if _imported:  # else there is nothing to forget, and an import could wait for a thread that is not here
            from ebpftrace.context import sockets

            sockets.forget()
        if self._kernel is not None:
            self._kernel.forget()
        if self._reader is not None:
            self._reader.forget()
        if self._binding is not None:
            self._binding.forget()
        if self._context is not None:
            self._context.forget()
        self._quiet = self._quiet if self._forked else not self.active
        self._kernel = self._reader = self._pipeline = self._binding = self._context = None
        self._last_stats = {}
        self._counting = threading.Lock()
        self._forked = True
        self.active = False
        self.reason = "the process forked, and nothing was traced here since"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _refuse_early(settings: Settings) -> None:
    """Say no before anything is loaded, where that would do harm."""
    if settings.disabled:
        raise UnsupportedError("ebpftrace", "the setting `disabled` (EBPFTRACE_DISABLED) is on")


def _default_mask(settings: Settings) -> int:
    """The programs that act for every sampled span."""
    from ebpftrace.context.enable import program_mask

    if settings.enable == (SAMPLED,):
        return program_mask(())
    return program_mask(settings.enable) if settings.enable else 0


def refused_twice(here: EbpftraceError, agent: EbpftraceError) -> UnsupportedError:
    """Return an error that says why neither this process nor an agent traces."""
    return UnsupportedError("kernel tracing", f"{_explain(here)}. And {agent}")


def _explain(error: EbpftraceError) -> str:
    import errno

    if isinstance(error, BpfError) and error.errno in (errno.EPERM, errno.EACCES):
        return (
            f"{error}; loading BPF programs takes CAP_BPF and CAP_PERFMON (or root): `ebpftrace doctor` shows "
            "what this process may do"
        )
    return str(error)


def start(**given: Any) -> Session:
    """Start the library in this process; see `ebpftrace.start`."""
    global _session  # noqa: PLW0603
    settings = resolve(given)
    settings = replace(settings, programs=tuple(sorted({*settings.programs, *settings.enable} - {SAMPLED})))
    _notice_fork()
    with _lock():
        if _session is not None and _session._forked:
            _session = None  # the parent's; here nothing runs yet
        if _session is not None:
            _tell_differences(_session.settings, settings, given)
            return _session
        session = _run(Session(settings))
        atexit.unregister(stop)
        atexit.register(stop)
        return session


def _tell_differences(running: Settings, wanted: Settings, given: Mapping[str, Any]) -> None:
    other = [name for name in sorted(given) if getattr(wanted, name) != getattr(running, name)]
    if other:
        stays = ", ".join(f"{name}={getattr(running, name)!r}" for name in other)
        logger.warning("start() was called again with other settings; what runs stays as it is: %s", stays)


def _run(session: Session) -> Session:
    """Start a session; a fork meanwhile, in another thread, must find what it holds already."""
    global _session, _starting, _fork_handler_installed  # noqa: PLW0603
    if not _fork_handler_installed:
        os.register_at_fork(after_in_child=_after_fork_in_child)
        _fork_handler_installed = True
        _end_workers_in_order()
    _starting = session
    session._start()
    _session, _starting = session, None
    return session


def stop() -> None:
    """Stop the library in this process, if it runs."""
    session = _session
    if session is not None:
        session.stop()


def latest() -> Session | None:
    """Return the session that runs, else the one that ran last."""
    return _session or _stopped


# --- fork --------------------------------------------------------------------------------------------------------


def _after_fork_in_child() -> None:
    """Let go of the parent's programs. The publisher disarmed itself already, in C, before this."""
    starting = _starting
    session = _leave_to_parent()
    if session is None:
        return
    # a child that forks before its own restart is done has nothing running, but its child is to be traced too
    publishing = session._context is not None and session._context.published
    was_active = session.active or publishing or session._forked or starting is not None
    _forget(session)
    if not was_active or not _imported:  # an import that a thread of the parent was in would never end here
        return
    from ebpftrace.context import _publisher, hooks

    _publisher.disarm()
    hooks.install(_restart_in_child, session.settings.context_hooks)  # start() may not have come to it
    _publisher.expect_fork()


def _notice_fork() -> None:
    """In the child of a fork that C code did, of which Python was not told: let go, and stay off."""
    session = _session
    if session is not None and session._pid != os.getpid():
        _leave_to_parent()
        _forget(session)


def _leave_to_parent() -> Session | None:
    """What runs here, or is being started, is the parent's; return it."""
    global _session, _starting  # noqa: PLW0603
    _locks.clear()  # whoever held one is not here
    starting, _starting = _starting, None
    _session = starting or _session
    return _session


def _forget(session: Session) -> None:
    session._pid = os.getpid()
    try:
        session._forget()
    except Exception:  # a fork must not fail because of us
        logger.exception("the child of a fork could not let go of its parent's kernel programs")


def _end_workers_in_order() -> None:
    """Have multiprocessing's forked workers, which end without exit handlers, export their last spans."""
    from multiprocessing import util

    # a function of this module lives as long as the registry that refers to it weakly
    util.register_after_fork(_end_worker, lambda end: util.Finalize(None, end, exitpriority=0))


def _end_worker() -> None:
    from ebpftrace.runtime.otel import flush_providers

    session = _session
    if session is not None:
        session.flush(_WORKER_FLUSH_S)
    flush_providers(_WORKER_FLUSH_S)


def _restart_in_child() -> None:
    """At a forked child's first span: start again, in the background, with programs and a table of its own."""
    try:
        threading.Thread(target=restart, name="ebpftrace-restart", daemon=True).start()
    except RuntimeError as error:  # its first span comes from an exit handler
        logger.debug("kernel tracing stays off in this child of a fork: %s", error)


def restart() -> Session | None:
    """Start again after a fork, with the parent's settings; return the session, or None when none ran."""
    with _lock():
        session = _session
        if session is None or not session._forked:
            return session  # stopped meanwhile, or started again by the application
        fresh = Session(session.settings, in_real_thread)
        fresh._quiet = session._quiet
        return _run(fresh)
