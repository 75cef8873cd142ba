/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * For authors of BCC programs: records that become spans below the span that
 * the current thread of an application runs.
 *
 *	#include <ebpftrace_bcc.h>
 *
 *	struct open_t {
 *		struct ebt_span span;	(first)
 *		u32 flags;
 *	};
 *	BPF_RINGBUF_OUTPUT(events, 64);
 *
 *	TRACEPOINT_PROBE(syscalls, sys_enter_openat)
 *	{
 *		struct open_t record = {};
 *
 *		if (!ebt_span_begin(&record.span, 0, sizeof(record)))
 *			return 0;	(this thread runs no span)
 *		record.flags = args->flags;
 *		if (events.ringbuf_output(&record, sizeof(record), 0))
 *			ebt_drops.increment(0);
 *		return 0;
 *	}
 *
 * Compile with BPF(text=..., cflags=ebpftrace.bcc.cflags()): that says where
 * this header is, and by which descriptors the running session's maps are
 * known.  Without a session no thread runs a span.
 *
 * BCC takes types and offsets from the kernel's headers, so nothing here needs
 * BTF; it rewrites the main file only, so nothing here uses its own syntax but
 * the declaration of a table.
 */
#ifndef EBPFTRACE_BCC_H
#define EBPFTRACE_BCC_H

#include <linux/pid.h>
#include <linux/sched.h>

#include "ebpftrace_abi.h"

/*
 * Records that a ring buffer had no room for; the reader looks for this name.
 * Perf buffers count for themselves.
 */
BPF_PERCPU_ARRAY(ebt_drops, u64, 1);

/* Have BCC know `struct name`, so that a YAML file can refer to its fields by their names. */
#define EBT_RECORD(name) BPF_ARRAY(ebt_record_##name, struct name, 1)

/* A fresh id: never zero, never a kernel pointer. */
static __always_inline __u64 ebt_random_id(void)
{
	__u64 id = ((__u64)bpf_get_prandom_u32() << 32) | bpf_get_prandom_u32();

	return id ? id : 1;
}

static __always_inline void ebt_span_head(struct ebt_span *span, __u32 type, __u32 len)
{
	__u64 id = ebt_random_id();

	span->hdr.ts_ns = bpf_ktime_get_ns();
	span->hdr.type = type;
	span->hdr.len = len;
	__builtin_memcpy(span->span_id, &id, sizeof(id));
	span->duration_ns = 0;
}

/* Begin a span of a trace of its own. */
static __always_inline void ebt_span_root(struct ebt_span *span, __u32 type, __u32 len)
{
	__u64 id[2] = { ebt_random_id(), ebt_random_id() };

	ebt_span_head(span, type, len);
	__builtin_memcpy(span->trace_id, id, sizeof(id));
	__builtin_memset(span->parent_span_id, 0, sizeof(span->parent_span_id));
}

/* The span lasted from its beginning until now. */
static __always_inline void ebt_span_end(struct ebt_span *span)
{
	span->duration_ns = bpf_ktime_get_ns() - span->hdr.ts_ns;
}

#ifdef EBT_PROCESSES_FD

/* A map of the running session: the descriptor is the loading process's. */
#define EBT_MAP(fd) ((void *)bpf_pseudo_fd(1 /* BPF_PSEUDO_MAP_FD */, fd))

/* The current thread's id where it lives: what it sees as its own gettid(). */
static __always_inline __u32 ebt_innermost_tid(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct pid *pid = NULL;
	unsigned int level = 0;
	__u32 tid = 0;

	bpf_probe_read_kernel(&pid, sizeof(pid), &task->thread_pid);
	if (!pid)
		return 0;
	bpf_probe_read_kernel(&level, sizeof(level), &pid->level);
	bpf_probe_read_kernel(&tid, sizeof(tid), &pid->numbers[level].nr);
	return tid;
}

static __always_inline struct ebt_slot *ebt_slot_find(void *table, __u32 tid)
{
	__u32 home = ebt_slot_home(tid);

#pragma unroll
	for (__u32 probe = 0; probe < EBT_TABLE_PROBES; probe++) {
		__u32 index = (home + probe) & (EBT_TABLE_SLOTS - 1);
		struct ebt_slot *slot = bpf_map_lookup_elem(table, &index);

		if (!slot || slot->tid == 0)
			return NULL;
		if (slot->tid == tid)
			return slot;
	}
	return NULL;
}

/* The current thread's slot, when it has a sampled span in it that the thread runs now. */
static __always_inline struct ebt_slot *ebt_current_slot(void)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	void *table = bpf_map_lookup_elem(EBT_MAP(EBT_PROCESSES_FD), &tgid);
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct ebt_slot *slot;
	struct ebt_python python = {};
	__u64 born = 0;

	if (!table)
		return NULL;
	slot = ebt_slot_find(table, ebt_innermost_tid());
	if (!slot || slot->valid != 1 || !(slot->trace_flags & 1))
		return NULL;
	/* older than the thread: an earlier one's of that id */
	bpf_probe_read_kernel(&born, sizeof(born), &task->start_time);
	if (slot->claimed_ns < born)
		return NULL;
	if (!slot->stamp_addr)
		return slot;
	if (bpf_probe_read_user(&python, sizeof(python), (void *)slot->stamp_addr))
		return NULL;
	return ebt_stamp(&python) == slot->stamp ? slot : NULL;
}

/* Begin a span below the one that the current thread runs; false, and nothing is done, when it runs none. */
static __always_inline bool ebt_span_begin(struct ebt_span *span, __u32 type, __u32 len)
{
	struct ebt_slot *slot = ebt_current_slot();

	if (!slot)
		return false;
	ebt_span_head(span, type, len);
	__builtin_memcpy(span->trace_id, slot->trace_id, sizeof(span->trace_id));
	__builtin_memcpy(span->parent_span_id, slot->span_id, sizeof(span->parent_span_id));
	return true;
}

#else

static __always_inline bool ebt_span_begin(struct ebt_span *span, __u32 type, __u32 len)
{
	return false;
}

#endif
#endif
