# SPDX-License-Identifier: Apache-2.0
"""Which tests run in a virtual machine, and what each of them is about.

Without hardware virtualisation everything takes 20 to 40 times as long there, so what runs is what another kernel can
make come out differently: hooks, layouts, what tracepoints say. What only depends on our own Python and C (forks,
shutdown, agents under load) and what measures time closely runs on this machine's kernel alone, in `make test`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
BCC = "BCC"


@dataclass(frozen=True, slots=True)
class Group:
    """Tests of one module.

    Args:
        about: a program's name, "library" or "BCC".
        module: of tests.
        tests: functions, with all their parameters; none: the whole module.
        directory: that the module is in.
    """

    about: str
    module: str
    tests: tuple[str, ...] = ()
    directory: str = "kernel"

    def arguments(self):
        """What pytest is given."""
        path = f"tests/{self.directory}/{self.module}.py"
        return [f"{path}::{name}" for name in self.tests] or [path]


GROUPS = (
    Group("library", "test_kernel_capabilities", ("test_missing_tracepoint",)),
    Group("library", "test_kernel_spans", ("test_only_the_enabled_span", "test_identity", "test_children")),
    Group("sched", "test_kernel_breakdown", ("test_cause", "test_throttled")),
    Group(
        "exec",
        "test_kernel_exec",
        (
            "test_one_binary",
            "test_duration",
            "test_exit_code",
            "test_killed",
            "test_tree",
            "test_chain",
            "test_long_arguments",
            "test_strange_bytes",
            "test_threads_are_not_processes",
            "test_exec_in_a_thread",
            "test_every_way_to_start",
            "test_roots",
        ),
    ),
    Group(
        "bio",
        "test_kernel_bio",
        (
            "test_direct",
            "test_queue",
            "test_fsync",
            "test_deferred_write",
            "test_errors",
            "test_agrees_with_the_kernel",
            "test_all_requests",
            "test_nothing_enabled",
        ),
    ),
    Group("cfs-throttling", "test_kernel_cfs", ("test_thread", "test_group", "test_no_quota")),
    Group("cfs-throttling", "test_kernel_variants_cfs"),
    Group(
        "sock",
        "test_kernel_sock",
        (
            "test_phases",
            "test_refused",
            "test_resets",
            "test_retransmitted_syn",
            "test_zero_window",
            "test_udp",
            "test_udp_drop",
        ),
    ),
    Group("sock", "test_kernel_sock_ties", ("test_released", "test_limit", "test_cookie")),
    Group("sock", "test_kernel_variants_sock"),
    # all of them: BCC needs the headers of the kernel that runs, which are there in a virtual machine
    *(Group(BCC, path.stem, directory="bpfcc") for path in sorted((TESTS / "bpfcc").glob("test_*.py"))),
)

DEMOS = {"sock": "sock", "sched": "sched", "cfs-throttling": "cfs-throttling"}
"""Demos, and the program that each is about."""


QUICK = (
    Group("library", "test_kernel_capabilities", ("test_missing_tracepoint",)),
    Group("sched", "test_kernel_breakdown", ("test_cause",)),
    Group("exec", "test_kernel_exec", ("test_tree",)),
    Group("bio", "test_kernel_bio", ("test_direct",)),
    Group("cfs-throttling", "test_kernel_variants_cfs", ("test_same_periods",)),
    Group("sock", "test_kernel_sock", ("test_refused", "test_udp")),
    Group(BCC, "test_bcc", ("test_header",), directory="bpfcc"),
)
"""One or two tests of each program, for whoever cannot wait; that all of them load and attach is looked at anyway."""


def arguments(*, quick=False):
    """What pytest is given, for all or for the quick ones."""
    return [argument for group in (QUICK if quick else GROUPS) for argument in group.arguments()]


def about(module):
    """What a module's tests are about."""
    return next((group.about for group in GROUPS if group.module == module), "library")
