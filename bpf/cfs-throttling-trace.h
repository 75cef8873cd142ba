/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Records of cfs-throttling-trace.bpf.c. */
#ifndef EBPFTRACE_CFS_THROTTLING_H
#define EBPFTRACE_CFS_THROTTLING_H

#include "ebpftrace_abi.h"

#define EBT_CGROUP_PATH 256

enum ebt_cfs_type {
	EBT_CFS_TASK = 1,
	EBT_CFS_PERIOD = 2,
	EBT_CFS_PERIOD_FUNCTION = 3, /* the same, seen by the function that ended it */
};

/* A traced thread was stopped because its group had no quota left, until it ran again. */
struct ebt_cfs_task {
	struct ebt_span span;
	__u64 cgroup; /* id of the group whose quota it was; 0 = not known */
	__s64 throttled_ns; /* of the span: until the group had quota again; -1 = not known */
	__s64 run_queue_ns; /* the rest: then it waited for a CPU; -1 = not known */
	__u32 pid; /* of the process, in its innermost pid namespace */
	__u32 tid;
	__u32 cpu; /* that it left */
	__u32 pad;
	char cgroup_path[EBT_CGROUP_PATH]; /* in its hierarchy; empty = not known */
};

/* A group had no quota left on one CPU, until it was given more. */
struct ebt_cfs_period {
	struct ebt_span span;
	__u64 cgroup; /* id of the group */
	__u64 quota_ns; /* that it has in each period, over all CPUs */
	__u64 period_ns;
	__u32 nr_throttled; /* of its cpu.stat, at the end of the span */
	__u32 cpu;
	char cgroup_path[EBT_CGROUP_PATH];
};

EBT_ASSERT(sizeof(struct ebt_cfs_task) == 96 + EBT_CGROUP_PATH, "record");
EBT_ASSERT(sizeof(struct ebt_cfs_period) == 88 + EBT_CGROUP_PATH, "record");

#endif
