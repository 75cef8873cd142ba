// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Owner of the maps that all programs of a loader share (`processes`,
 * `publishers`, `lines`), and the answer to a question that a process in a pid
 * namespace cannot answer by itself: which process am I to the kernel?
 */
#include "ebpftrace.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Never attached: run once by BPF_PROG_TEST_RUN, in the caller's context. */
SEC("raw_tp")
int identify(void *ctx)
{
	return bpf_get_current_pid_tgid() >> 32;
}
