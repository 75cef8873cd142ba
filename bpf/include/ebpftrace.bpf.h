/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * For authors of ebpftrace programs.
 *
 * A program finds the trace context that a thread published, filters by its own
 * bit of the context's mask before any work, and submits records that become
 * spans below that context:
 *
 *	SEC("tp_btf/sched_process_exec")
 *	int BPF_PROG(on_exec, struct task_struct *task)
 *	{
 *		struct ebt_thread thread;
 *		struct my_span *span;
 *
 *		if (!ebt_thread_find(task, &thread) || !ebt_enabled(thread.slot))
 *			return 0;
 *		span = ebt_reserve(struct my_span, MY_SPAN, bpf_ktime_get_ns(), thread.slot->trace_id,
 *				   thread.slot->span_id);
 *		if (!span)
 *			return 0;	(counted)
 *		span->pid = task->pid;
 *		ebt_submit(span);
 *		return 0;
 *	}
 *
 * Every object has one ring buffer, `events`, and one array of drop counters,
 * `drops`.  `processes`, `publishers` and `lines` are shared by all objects of a
 * loader.
 */
#ifndef EBPFTRACE_BPF_H
#define EBPFTRACE_BPF_H

#include "kernel.bpf.h"

#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "ebpftrace_abi.h"

/* Set by the loader: this program's bit in a context's mask. */
const volatile __u32 ebt_program_bit = 0;
/* Set by the loader: unread bytes in the ring at which the reader is woken at once. */
const volatile __u64 ebt_wakeup_bytes = 0;

/*
 * Keep a record's type in the object's BTF, where the reader learns its layout:
 * clang leaves out what no map, function or variable names.
 */
#define EBT_RECORD(name) const struct name *const volatile ebt_record_##name = 0

/* The inner maps need a named value type in BTF, hence an instance of each. */
struct ebt_slots {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, EBT_TABLE_SLOTS);
	__type(key, __u32);
	__type(value, struct ebt_slot);
} slots SEC(".maps");

struct ebt_lines {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, EBT_TABLE_SLOTS);
	__type(key, __u32);
	__type(value, struct ebt_line);
} thread_lines SEC(".maps");

/* tgid -> the process's context table */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__array(values, struct ebt_slots);
} processes SEC(".maps");

/*
 * A bit for each tgid in `processes`, modulo the number of bits: most tasks of
 * a machine publish nothing, and an array tells so sooner than a hash.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, EBT_PUBLISHER_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} publishers SEC(".maps");

/* tgid -> the lines beside that table */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__array(values, struct ebt_lines);
} lines SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EBT_DROPS);
	__type(key, __u32);
	__type(value, __u64);
} drops SEC(".maps");

/* A thread of a process that publishes its context. */
struct ebt_thread {
	struct ebt_slot *slot;
	__u32 index; /* of its slot, and of its line */
	__u32 tid; /* in its innermost pid namespace */
};

static __always_inline void ebt_count_drop(__u32 reason)
{
	__u64 *count = bpf_map_lookup_elem(&drops, &reason);

	if (count)
		(*count)++;
}

/* The thread's id where it lives: what it sees as its own gettid(). */
static __always_inline __u32 ebt_innermost_tid(struct task_struct *task)
{
	struct pid *pid = task->thread_pid;
	unsigned int level;
	__u32 tid = 0;

	if (!pid)
		return 0;
	level = pid->level;
	if (level == 0)
		return task->pid;
	/* read once more, as a number: verifiers before 6.2 refuse to index what they know as a pointer */
	bpf_core_read(&pid, sizeof(pid), &task->thread_pid);
	bpf_probe_read_kernel(&tid, sizeof(tid),
			      (void *)pid + bpf_core_field_offset(struct pid, numbers) +
				      level * bpf_core_type_size(struct upid) +
				      bpf_core_field_offset(struct upid, nr));
	return tid;
}

/* The process's id where it lives: what it sees as its own getpid(). */
static __always_inline __u32 ebt_innermost_pid(struct task_struct *task)
{
	struct task_struct *leader = task->group_leader;

	return leader ? ebt_innermost_tid(leader) : 0;
}

static __always_inline bool ebt_slot_find(void *table, struct ebt_thread *thread)
{
	__u32 home = ebt_slot_home(thread->tid);

	for (__u32 probe = 0; probe < EBT_TABLE_PROBES; probe++) {
		__u32 index = (home + probe) & (EBT_TABLE_SLOTS - 1);
		struct ebt_slot *slot = bpf_map_lookup_elem(table, &index);

		if (!slot || slot->tid == 0)
			return false;
		if (slot->tid == thread->tid) {
			thread->slot = slot;
			thread->index = index;
			return true;
		}
	}
	return false;
}

/* False: the process does not publish; true: it may. */
static __always_inline bool ebt_may_publish(__u32 tgid)
{
	__u32 word = (tgid / 64) & (EBT_PUBLISHER_WORDS - 1);
	const __u64 *bits = bpf_map_lookup_elem(&publishers, &word);

	return bits && *bits & (1ULL << (tgid & 63));
}

/* Find the slot of `task`; false for threads of processes that do not publish. */
static __always_inline bool ebt_thread_find(struct task_struct *task, struct ebt_thread *thread)
{
	__u32 tgid = task->tgid;
	void *table;

	if (!ebt_may_publish(tgid))
		return false;
	table = bpf_map_lookup_elem(&processes, &tgid);
	if (!table)
		return false;
	thread->tid = ebt_innermost_tid(task);
	/* a slot that is older than the thread is an earlier one's of that id, which ended without giving it back */
	return ebt_slot_find(table, thread) && thread->slot->claimed_ns >= task->start_time;
}

/* The kernel's line beside a slot, or NULL. */
static __always_inline struct ebt_line *ebt_thread_line(struct task_struct *task,
							const struct ebt_thread *thread)
{
	__u32 tgid = task->tgid;
	__u32 index = thread->index;
	void *table = bpf_map_lookup_elem(&lines, &tgid);

	return table ? bpf_map_lookup_elem(table, &index) : NULL;
}

/*
 * Is this program enabled for the context in `slot`, and is that context what
 * the thread runs?  Only for the current thread: the stamp is in its memory.
 */
static __always_inline bool ebt_enabled(const struct ebt_slot *slot)
{
	struct ebt_python python;

	if (slot->valid != 1 || !(slot->mask & ebt_program_bit))
		return false;
	if (!slot->stamp_addr)
		return true;
	if (bpf_probe_read_user(&python, sizeof(python), (void *)slot->stamp_addr))
		return false;
	return ebt_stamp(&python) == slot->stamp;
}

/* A fresh id: never zero, never a kernel pointer, never what a ring's old bytes say. */
static __always_inline __u64 ebt_random_id(void)
{
	__u64 id = ((__u64)bpf_get_prandom_u32() << 32) | bpf_get_prandom_u32();

	return id ? id : 1;
}

static __always_inline void ebt_span_init(struct ebt_span *span, __u32 type, __u32 len, __u64 ts_ns,
					  const __u8 *trace_id, const __u8 *parent_span_id)
{
	__u64 id = ebt_random_id();

	span->hdr.ts_ns = ts_ns;
	span->hdr.type = type;
	span->hdr.len = len;
	__builtin_memcpy(span->trace_id, trace_id, sizeof(span->trace_id));
	__builtin_memcpy(span->parent_span_id, parent_span_id, sizeof(span->parent_span_id));
	__builtin_memcpy(span->span_id, &id, sizeof(id));
	span->duration_ns = 0;
}

/*
 * Reserve a record whose first member is `struct ebt_span span`, zeroed, with
 * its ids and start set.  NULL when the ring is full, which is then counted.
 */
#define ebt_reserve(record_t, type_, ts_ns_, trace_id_, parent_span_id_)                           \
	({                                                                                         \
		record_t *record_ = bpf_ringbuf_reserve(&events, sizeof(record_t), 0);             \
		if (record_) {                                                                     \
			__builtin_memset(record_, 0, sizeof(*record_));                            \
			ebt_span_init(&record_->span, type_, sizeof(*record_), ts_ns_, trace_id_,  \
				      parent_span_id_);                                            \
		} else {                                                                           \
			ebt_count_drop(EBT_DROP_RING_FULL);                                        \
		}                                                                                  \
		record_;                                                                           \
	})

/*
 * How to hand over a record.  The reader drains the ring on a timer, so a record
 * wakes it only when much is waiting: a wake-up for each record costs more than
 * the record.
 */
static __always_inline __u64 ebt_wakeup_flags(void)
{
	if (bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >= ebt_wakeup_bytes)
		return BPF_RB_FORCE_WAKEUP;
	return BPF_RB_NO_WAKEUP;
}

/* Hand a record of ebt_reserve() to the reader. */
static __always_inline void ebt_submit(void *record)
{
	bpf_ringbuf_submit(record, ebt_wakeup_flags());
}

#endif
