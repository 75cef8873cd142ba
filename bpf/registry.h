/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What registry.bpf.c tells the agent. */
#ifndef REGISTRY_H
#define REGISTRY_H

#include <linux/types.h>

/* The process at the other end of a socket. */
struct ebt_registry_peer {
	__u64 started_ns; /* since boot; 0 = it has ended */
	__u64 exec_id; /* another one after each exec */
	__u32 tgid; /* as the kernel has it; 0 = none */
	__u32 changed; /* its privileges are not those that it connected with */
};

/* A process with a table has executed another binary. */
struct ebt_registry_exec {
	__u64 ts_ns; /* CLOCK_MONOTONIC */
	__u32 tgid;
	__u32 pad;
};

_Static_assert(sizeof(struct ebt_registry_peer) == 24, "agent/registry_kernel.py");
_Static_assert(sizeof(struct ebt_registry_exec) == 16, "agent/registry_kernel.py");

#endif
