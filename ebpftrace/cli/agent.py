# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace agent`: programs described by YAML in, OTLP spans out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ebpftrace.cli import agent_registry as registry
from ebpftrace.errors import CommandError

if TYPE_CHECKING:
    import argparse

_DEFAULT_LISTEN = "127.0.0.1:9435"
_MIN_RING_KIB, _MAX_RING_KIB = 4, 1 << 20
_MAX_SHUTDOWN_S = 3600.0


class AgentCommand:
    """Run BPF programs described by YAML files, and export their records as OTLP spans.

    A program is NAME.yaml with NAME.bpf.o beside it. Files of cloudflare/ebpf_exporter with a `tracing` part run
    unchanged. Without --config-dir, names are those of the programs that come with ebpftrace (`ebpftrace list`).

    Where spans go is said by the standard variables: OTEL_TRACES_EXPORTER (otlp, console, none),
    OTEL_EXPORTER_OTLP_ENDPOINT, _PROTOCOL (http/protobuf, grpc), _HEADERS, _CERTIFICATE, _COMPRESSION, _TIMEOUT,
    OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME.

    SIGHUP reads the files again; SIGTERM sends what is there and ends: with 0, or with 1 when spans were lost by that.
    """

    name = "agent"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "files", nargs="*", metavar="YAML", type=Path, help="a program's file, its object beside it"
        )
        parser.add_argument("--config-dir", metavar="DIR", type=Path, help="where NAME.yaml and NAME.bpf.o are")
        parser.add_argument(
            "--config-names",
            metavar="NAMES",
            default="",
            help="programs to run, separated by commas",
        )
        parser.add_argument(
            "--set", metavar="PROGRAM.KNOB=VALUE", action="append", default=[], dest="overrides",
            help="set a knob of a program, such as exec-trace.roots=/usr/bin/python3; may be given again",
        )  # fmt: skip
        parser.add_argument(
            "--strict", action="store_true", help="end when a program or one of its hooks cannot be had"
        )
        parser.add_argument(
            "--no-extras", action="store_true", help="load no functions that only some kernels take, such as fentry"
        )
        parser.add_argument(
            "--encoder", choices=("auto", "native", "sdk"), default="auto",
            help="what turns records into OTLP: our own encoder, or the SDK's exporters (default: native for OTLP)",
        )  # fmt: skip
        parser.add_argument("--output", metavar="FILE", default="", help="also write all spans as OTLP JSON lines")
        parser.add_argument(
            "--listen", metavar="HOST:PORT", default=_DEFAULT_LISTEN,
            help="where /metrics, /healthz and /livez are; fd://3 = a socket of systemd's, none = nowhere "
            "(default: %(default)s)",
        )  # fmt: skip
        parser.add_argument(
            "--capabilities-keep", metavar="NAMES", default="auto",
            help="capabilities to keep once programs are attached: auto, all, none, or names (default: %(default)s)",
        )  # fmt: skip
        parser.add_argument("--no-landlock", action="store_true", help="leave access to files and ports as it is")
        parser.add_argument("--log-format", choices=("text", "json"), default="text", help="default: %(default)s")
        parser.add_argument(
            "--ring-kib", metavar="N", type=int, default=4096,
            help="size of each ring buffer of programs made with our header, a power of two (default: %(default)s)",
        )  # fmt: skip
        registry.add_arguments(parser)
        parser.add_argument(
            "--shutdown-timeout", metavar="SECONDS", type=float, default=10.0,
            help="the longest that ending takes (default: %(default)s)",
        )  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        """Run the agent until a signal ends it.

        Raises:
            CommandError: wrong usage (exit code 2), or nothing could be started (1).
        """
        from ebpftrace.agent import logs
        from ebpftrace.agent.daemon import Options, parse_overrides, run
        from ebpftrace.agent.privileges import parse_keep

        names = tuple(name.strip() for name in args.config_names.split(",") if name.strip())
        if not names and not args.files:
            raise CommandError(
                "say which programs to run: --config-names exec-trace,bio-trace, or YAML files; `ebpftrace list` shows "
                "those that come with ebpftrace",
                exit_code=2,
            )
        if not (_MIN_RING_KIB <= args.ring_kib <= _MAX_RING_KIB and args.ring_kib & (args.ring_kib - 1) == 0):
            raise CommandError(
                f"--ring-kib {args.ring_kib}: give a power of two from {_MIN_RING_KIB} to {_MAX_RING_KIB}", exit_code=2
            )
        if not 0 <= args.shutdown_timeout <= _MAX_SHUTDOWN_S:
            raise CommandError(
                f"--shutdown-timeout {args.shutdown_timeout:g}: give seconds, from 0 to {_MAX_SHUTDOWN_S:g}",
                exit_code=2,
            )
        logs.configure(args.log_format, verbose=args.verbose)
        return run(
            Options(
                names=names,
                config_dir=args.config_dir,
                files=tuple(args.files),
                overrides=parse_overrides(args.overrides),
                encoder=args.encoder,
                output=args.output,
                listen="" if args.listen.lower() == "none" else args.listen,
                keep=parse_keep(args.capabilities_keep),
                landlock=not args.no_landlock,
                strict=args.strict,
                extras=not args.no_extras,
                ring_kib=args.ring_kib,
                shutdown_s=args.shutdown_timeout,
                registry=registry.options(args),
                insist=args.socket is not None,
            )
        )
