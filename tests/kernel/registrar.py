# SPDX-License-Identifier: Apache-2.0
"""The agent's registry in this process, and other processes that talk to it as an ordinary user."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import json
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import traceback
from pathlib import Path

import machine

NOBODY, OTHER = 65534, 1234
SLOTS = 64 * 1024
"""Bytes of a table."""
CLONE_NEWPID = 0x20000000
_libc = ctypes.CDLL(None, use_errno=True)


class Registrar:
    """A registry that runs.

    Args:
        settings: of `RegistryOptions`, with `allow` and `deny` as texts of user ids, and lists of groups.
    """

    def __init__(
        self, *, allow="*", deny="", allow_gids=(), deny_gids=(), pin_dir="", programs=None, directory=None, **settings
    ):
        from ebpftrace.agent.registry import Registry, RegistryOptions
        from ebpftrace.agent.registry_policy import Policy, Rule
        from ebpftrace.programs.core import Core

        self._own = directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix="ebt-registry-"))
        self.directory.chmod(0o755)  # pytest's own are closed to other users
        self.path = str(self.directory / "agent.sock")
        self.core = Core()
        self.core.load()
        policy = Policy(
            Rule.parse("allow", allow.split(",") if allow else [], allow_gids, []),
            Rule.parse("deny", deny.split(",") if deny else [], deny_gids, []),
        )
        options = RegistryOptions(path=self.path, pin_dir=pin_dir, policy=policy, **settings)
        try:
            self.registry = Registry(options, self.core)
            self.registry.start(programs or {"sched": 2})
        except BaseException:
            self.core.object.close()
            raise

    def snapshot(self):
        """Its counters."""
        return self.registry.snapshot()

    def in_force(self):
        """The processes that BPF programs find a table for: entered, and their bit is set."""
        keys = {}

        def agree():  # they are changed one after the other
            for name in ("processes", "lines"):
                keys[name] = {struct.unpack("=I", key)[0] for key in self.core.map(name)}
            return keys["processes"] == keys["lines"]

        assert machine.until(agree)
        return {tgid for tgid in keys["processes"] if self.bit(tgid)}

    def bit(self, tgid):
        """The bit of a process in `publishers`."""
        word = self.core.map("publishers").lookup(struct.pack("=I", tgid // 64 % 1024))
        return int.from_bytes(word, "little") >> tgid % 64 & 1

    def close(self):
        """End it."""
        self.registry.close()
        self.core.object.close()
        if self._own:
            shutil.rmtree(self.directory)


@contextlib.contextmanager
def registrar(**settings):
    """A registry that runs within the block."""
    made = Registrar(**settings)
    try:
        yield made
    finally:
        made.close()


class Child:
    """A forked process with no privileges, that does what a function does, step by step.

    Args:
        function: a generator function; each value that it yields is JSON-able, and is returned by `next()`.
        uid: of the process; 0 = as we are.
        pid_namespace: the process is the first of its own.
    """

    def __init__(self, function, *args, uid=NOBODY, pid_namespace=False):
        (read, answer), (command, write) = os.pipe(), os.pipe()
        if pid_namespace:
            before = os.open("/proc/self/ns/pid", os.O_RDONLY)
            assert _libc.unshare(CLONE_NEWPID) == 0
        self.pid = os.fork()
        if self.pid == 0:
            _be(function, args, uid, answer, command)
        if pid_namespace:
            assert _libc.setns(before, CLONE_NEWPID) == 0
            os.close(before)
        os.close(answer)
        os.close(command)
        self._answers = os.fdopen(read, "r")
        self._commands = write

    def next(self):
        """Let it go on, and return what it yields next."""
        os.write(self._commands, b"x")
        line = self._answers.readline()
        assert line, "the child ended"
        said = json.loads(line)
        assert "error" not in said, said["error"]
        return said["value"]

    def end(self):
        """End it by a signal; idempotent."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
            self._answers.close()
            os.close(self._commands)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.end()


def _be(function, args, uid, answer, command):
    """Be the child; never returns."""
    try:
        for fd in sorted(int(path.name) for path in Path("/proc/self/fd").iterdir()):
            if fd > 2 and fd not in (answer, command):
                with contextlib.suppress(OSError):  # of the listing itself
                    os.close(fd)
        if uid:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        steps = function(*args)
        while os.read(command, 1):
            os.write(answer, json.dumps({"value": next(steps)}).encode() + b"\n")
    except BaseException:  # noqa: BLE001  (whatever it is, it is told)
        os.write(answer, json.dumps({"error": traceback.format_exc()}).encode() + b"\n")
    finally:
        os._exit(0)


def once(function, *args, **settings):
    """Run a function in such a process; return its result."""
    with Child(_one, function, args, **settings) as child:
        return child.next()


def _one(function, args):
    yield function(*args)


# --- what children do


def connect(path, timeout_s=10.0):
    """A connection to the registry."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        made.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(timeout_s), 0))
    made.connect(path)
    return made


def hello(token="", **changes):
    """The bytes of a hello."""
    return json.dumps({"type": "hello", "protocol": 1, "slots": 1024, "token": token} | changes).encode()


def ask(connection, packet):
    """Send a packet; return the answer and the descriptors that came with it. None: the connection was closed."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.send(packet)
    try:
        data, fds, _, _ = socket.recv_fds(connection, 16384, 8)
    except ConnectionResetError:
        return None, []
    return (json.loads(data) if data else None), fds


def outcome(action):
    """What became of it: "ok", or the name of the errno."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


def bpf(command, *words):
    """Ask BPF something, with an attribute of 32-bit words; return the errno's name, or "ok"."""
    attr = (ctypes.c_uint32 * 32)(*words)
    result = _libc.syscall(machine._BPF_SYSCALL, command, attr, ctypes.sizeof(attr))
    return "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()]


def send_with_fds(connection, packet, fds):
    """Send a packet with descriptors."""
    connection.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def mounted_bpf_fs(directory):
    """Mount a BPF file system, and take it away at the end of the block."""

    @contextlib.contextmanager
    def block():
        subprocess.run(["mount", "-t", "bpf", "bpf", directory], check=True)
        try:
            yield directory
        finally:
            subprocess.run(["umount", directory], check=True)

    return block()


def staying(path):
    """An innocent user's application: registers, and says after a while what is in its slots."""
    connection = connect(path)
    answer, fds = ask(connection, hello())
    slots = mmap.mmap(fds[0], SLOTS)
    slots[:4] = b"mine"
    ids = [int(Path(f"/proc/self/fdinfo/{fd}").read_text().split("map_id:")[1].split()[0]) for fd in fds]
    yield ids
    yield [answer["type"], slots[:4].decode(), sum(slots[4:])]
    connection.close()
