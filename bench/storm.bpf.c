// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A producer of the scheduler's records, as many and as fast as its runner says. */
#include "ebpftrace.bpf.h"
#include "sched-trace.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Records of one run, of each of the three kinds. */
#define ROUNDS 10

EBT_RECORD(ebt_sched_switch);
EBT_RECORD(ebt_sched_wakeup);
EBT_RECORD(ebt_sched_off_cpu);
EBT_RECORD(ebt_sched_migrate);

static const __u8 trace_id[16] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 };
static const __u8 span_id[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };

static __always_inline void switch_record(__u64 now)
{
	struct ebt_sched_switch *record;

	record = ebt_reserve(struct ebt_sched_switch, EBT_SCHED_SWITCH, now, trace_id, span_id);
	if (!record)
		return;
	record->pid = 1000;
	record->tid = 1001;
	record->state = 1;
	record->next_tid = 2000;
	__builtin_memcpy(record->next_comm, "neighbour", sizeof("neighbour"));
	ebt_submit(record);
}

static __always_inline void wakeup_record(__u64 now)
{
	struct ebt_sched_wakeup *record;

	record = ebt_reserve(struct ebt_sched_wakeup, EBT_SCHED_WAKEUP, now, trace_id, span_id);
	if (!record)
		return;
	record->pid = 1000;
	record->tid = 1001;
	record->waker_tid = 2000;
	__builtin_memcpy(record->waker_comm, "neighbour", sizeof("neighbour"));
	ebt_submit(record);
}

static __always_inline void off_cpu_record(__u64 now)
{
	struct ebt_sched_off_cpu *record;

	record = ebt_reserve(struct ebt_sched_off_cpu, EBT_SCHED_OFF_CPU, now, trace_id, span_id);
	if (!record)
		return;
	record->span.duration_ns = 1000000;
	record->pid = 1000;
	record->tid = 1001;
	record->syscall = 202;
	record->cause = EBT_LOCK;
	record->waker_tid = 2000;
	__builtin_memcpy(record->waker_comm, "neighbour", sizeof("neighbour"));
	ebt_submit(record);
}

SEC("raw_tp")
int storm(void *ctx)
{
	__u64 now = bpf_ktime_get_ns();

	/* unrolled: spilled to the stack as it is, the verifier does not see the counter count */
#pragma clang loop unroll(full)
	for (int i = 0; i < ROUNDS; i++) {
		switch_record(now);
		wakeup_record(now);
		off_cpu_record(now);
	}
	return 0;
}
