/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Records of sched-trace.bpf.c. */
#ifndef EBPFTRACE_SCHED_H
#define EBPFTRACE_SCHED_H

#include "ebpftrace_abi.h"

enum ebt_sched_type {
	EBT_SCHED_SWITCH = 1,
	EBT_SCHED_WAKEUP = 2,
	EBT_SCHED_OFF_CPU = 3,
	EBT_SCHED_MIGRATE = 4,
};

/* A traced thread left its CPU. */
struct ebt_sched_switch {
	struct ebt_span span;
	__u32 pid; /* of the process, in its innermost pid namespace; so too below */
	__u32 tid;
	__u32 cpu;
	__u32 state; /* TASK_*, include/linux/sched.h */
	__u32 next_tid; /* who runs now, in the initial pid namespace; 0 = nobody */
	__u8 preempt;
	__u8 pad[3];
	char next_comm[16];
};

/* A traced thread became runnable. */
struct ebt_sched_wakeup {
	struct ebt_span span;
	__u32 pid;
	__u32 tid;
	__u32 cpu; /* that it will run on */
	__u32 waker_tid; /* in the initial pid namespace; 0 = an interrupt, or not known */
	char waker_comm[16];
};

/* A traced thread was off CPU, for one cause, for longer than the threshold. */
struct ebt_sched_off_cpu {
	struct ebt_span span;
	__u32 pid;
	__u32 tid;
	__u32 cpu; /* that it came back to */
	__s32 syscall; /* that it waited in; -1 = none */
	__u32 waker_tid; /* 0 = an interrupt, or not known */
	__u8 cause; /* enum ebt_cause */
	__u8 pad[3];
	char waker_comm[16];
};

/* A traced thread was given another CPU while it was off its own. */
struct ebt_sched_migrate {
	struct ebt_span span;
	__u32 pid;
	__u32 tid;
	__u32 orig_cpu;
	__u32 dest_cpu;
};

EBT_ASSERT(sizeof(struct ebt_sched_switch) == 96, "record");
EBT_ASSERT(sizeof(struct ebt_sched_wakeup) == 88, "record");
EBT_ASSERT(sizeof(struct ebt_sched_off_cpu) == 96, "record");
EBT_ASSERT(sizeof(struct ebt_sched_migrate) == 72, "record");

#endif
