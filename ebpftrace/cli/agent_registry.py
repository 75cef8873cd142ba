# SPDX-License-Identifier: Apache-2.0
"""Options of `ebpftrace agent` for applications that register."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ebpftrace.context.registration import DEFAULT_SOCKET
from ebpftrace.errors import CommandError

if TYPE_CHECKING:
    import argparse

    from ebpftrace.agent.registry import RegistryOptions

_ROOM = 4096  # of the map of processes
_PATH_BYTES = 107
_PIN_DIR = "/sys/fs/bpf/ebpftrace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument_group("applications without privileges")
    group.add_argument(
        "--socket", metavar="PATH", default=None,
        help=f"where applications register; '' = nowhere (default: {DEFAULT_SOCKET}, where that is possible)",
    )  # fmt: skip
    for option, what in (("allow", "may register, beside root and the agent's user"), ("deny", "may not")):
        for kind, names in (("uid", "users"), ("gid", "groups"), ("cgroup", "cgroups")):
            group.add_argument(
                f"--{option}-{kind}", metavar="PATTERNS" if kind == "cgroup" else "NAMES", action="append", default=[],
                help=f"{names} whose processes {what}; * = all, commas between",
            )  # fmt: skip
    group.add_argument(
        "--max-tables", metavar="N", type=int, default=512, help="context tables in all (default: %(default)s)"
    )
    group.add_argument(
        "--max-tables-per-uid", metavar="N", type=int, default=128, help="of one user (default: %(default)s)"
    )
    group.add_argument(
        "--pin-dir", metavar="DIR", default=_PIN_DIR,
        help="directory of a BPF file system where tables survive an agent that dies; '' = none "
        "(default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--keep-pins", action="store_true", help="leave them there also when a signal ends the agent")


def options(args: argparse.Namespace) -> RegistryOptions | None:
    """Return what was asked for; None = no registration.

    Raises:
        CommandError: a number or path is wrong.
        ConfigError: there is no such user or group.
    """
    from ebpftrace.agent.registry import RegistryOptions
    from ebpftrace.agent.registry_limits import Quotas
    from ebpftrace.agent.registry_policy import Policy, Rule

    path = DEFAULT_SOCKET if args.socket is None else args.socket
    if len(path.encode()) > _PATH_BYTES:
        raise CommandError(f"--socket {path}: the kernel takes {_PATH_BYTES} bytes at most", exit_code=2)
    for option, value in (("max-tables", args.max_tables), ("max-tables-per-uid", args.max_tables_per_uid)):
        if not 1 <= value <= _ROOM:
            raise CommandError(f"--{option} {value}: give a number from 1 to {_ROOM}", exit_code=2)
    if not path:
        return None
    rules = {
        option: Rule.parse(option, *(_words(getattr(args, f"{option}_{kind}")) for kind in ("uid", "gid", "cgroup")))
        for option in ("allow", "deny")
    }
    return RegistryOptions(
        path=path,
        pin_dir=args.pin_dir,
        keep_pins=args.keep_pins,
        policy=Policy(**rules),
        quotas=Quotas(args.max_tables, args.max_tables_per_uid),
    )


def _words(given: list[str]) -> list[str]:
    return [word.strip() for text in given for word in text.split(",") if word.strip()]
