/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Records of exec-trace.bpf.c. */
#ifndef EBPFTRACE_EXEC_H
#define EBPFTRACE_EXEC_H

#include "ebpftrace_abi.h"

#define EBT_EXEC_PATH 128
#define EBT_EXEC_ARGS 512

enum ebt_exec_type {
	EBT_EXEC_PROCESS = 1,
};

/* A binary ran, from its exec to the next exec of its process, or to the exit. */
struct ebt_exec_process {
	struct ebt_span span;
	__u32 pid; /* in its innermost pid namespace */
	__u32 parent_pid; /* likewise in the parent's */
	__u32 chain; /* 0: the first exec of this process, 1: exec'ed by the first, ... */
	__s32 status; /* as of wait(2); -1: ended by another exec, not by an exit */
	__u32 args_size; /* bytes of argv, before it was cut to fit */
	__u32 pad;
	char path[EBT_EXEC_PATH];
	char args[EBT_EXEC_ARGS]; /* argv, each argument ended by a NUL */
};

EBT_ASSERT(sizeof(struct ebt_exec_process) == 80 + EBT_EXEC_PATH + EBT_EXEC_ARGS, "record");

#endif
