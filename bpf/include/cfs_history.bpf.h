/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The scheduler's queues (cfs_rq: one for each group and CPU), and what is
 * remembered of the times when they were throttled.
 */
#ifndef EBPFTRACE_CFS_HISTORY_BPF_H
#define EBPFTRACE_CFS_HISTORY_BPF_H

#include "ebpftrace.bpf.h"

#define MAX_DEPTH 8 /* of groups in groups */
#define KEPT 4 /* periods of a queue that are remembered */
#define CLOCK_FRESH_NS 100000000
#define CLOCK_DRIFT_NS 50000 /* in that time, when NTP slews by the most it may */
#define CLOCK_STEP_NS 1000000000

/* What a queue has been through, for the threads that wait in it. */
struct history {
	__u64 throttled_ns; /* in all, up to the last release */
	__u64 releasing_ns; /* of a period that is being ended now: a thread may run before that is done */
	__u64 starts[KEPT];
	__u64 ends[KEPT];
	__u64 periods;
};

/* By address of the queue; what is evicted only leaves a thread's wait undivided. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct history);
} histories SEC(".maps");

/* The scheduler's clock against CLOCK_MONOTONIC: they differ, and drift by parts in a million. */
struct clocks {
	__u64 scheduler;
	__u64 offset;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct clocks);
} clocks SEC(".maps");

static const struct history no_history = {};

static __always_inline bool is_throttled(struct cfs_rq *queue)
{
	return BPF_CORE_READ_BITFIELD_PROBED(queue, throttled);
}

/* The directory of the queue's group; NULL for one that is no cgroup. */
static __always_inline struct kernfs_node *node_of(struct cfs_rq *queue)
{
	return BPF_CORE_READ(queue, tg, css.cgroup, kn);
}

static __always_inline __u64 cgroup_of(struct cfs_rq *queue)
{
	struct kernfs_node *node = node_of(queue);

	return node ? BPF_CORE_READ(node, id) : 0;
}

/* The queue of the group above, on the same CPU; NULL at the top. */
static __always_inline struct cfs_rq *queue_above(struct cfs_rq *queue)
{
	struct task_group *parent = BPF_CORE_READ(queue, tg, parent);
	struct cfs_rq **queues, *above = NULL;

	if (!parent)
		return NULL;
	queues = BPF_CORE_READ(parent, cfs_rq);
	bpf_probe_read_kernel(&above, sizeof(above), queues + BPF_CORE_READ(queue, rq, cpu));
	return above;
}

static __always_inline struct history *history_of(struct cfs_rq *queue)
{
	__u64 key = (__u64)queue;

	return bpf_map_lookup_elem(&histories, &key);
}

/* How long a queue and those above it have been throttled so far. */
static __always_inline __u64 throttled_so_far(struct cfs_rq *queue)
{
	struct history *history;
	__u64 total = 0;

	for (int depth = 0; depth < MAX_DEPTH && queue; depth++) {
		history = history_of(queue);
		if (history)
			total += history->throttled_ns + history->releasing_ns;
		queue = queue_above(queue);
	}
	return total;
}

/* The queue that has no quota, of this one and those above it. */
static __always_inline struct cfs_rq *throttled_queue(struct cfs_rq *queue)
{
	for (int depth = 0; depth < MAX_DEPTH && queue; depth++) {
		if (is_throttled(queue))
			return queue;
		queue = queue_above(queue);
	}
	return NULL;
}

/* The scheduler has just read its clock: how far is it from ours? */
static __always_inline void compare_clocks(struct task_struct *task)
{
	struct cfs_rq *queue = task->se.cfs_rq;
	struct clocks *pair;
	__u32 zero = 0;
	__u64 clock;
	__s64 moved;

	pair = bpf_map_lookup_elem(&clocks, &zero);
	if (!pair || !queue || !queue->rq)
		return;
	clock = queue->rq->clock;
	if (clock - pair->scheduler < CLOCK_FRESH_NS && !queue->throttle_count)
		return;
	moved = bpf_ktime_get_ns() - clock - pair->offset;
	/* whatever came between the two readings, a hypervisor for one, made them look further apart */
	if (pair->scheduler && moved > CLOCK_DRIFT_NS && moved < CLOCK_STEP_NS)
		moved = CLOCK_DRIFT_NS;
	pair->scheduler = clock;
	pair->offset += moved;
}

/* When a queue was throttled, by CLOCK_MONOTONIC; 0 = no thread had to stop, so the kernel counts no time. */
static __always_inline __u64 throttle_start(struct cfs_rq *queue, __u64 clock, __u64 now)
{
	struct clocks *pair;
	__u32 zero = 0;
	__u64 start;

	pair = bpf_map_lookup_elem(&clocks, &zero);
	if (!pair || !clock)
		return 0;
	/* before this CPU's first switch: the queue's own clock, which stands still while its CPU is idle */
	start = clock + (pair->scheduler ? pair->offset : now - BPF_CORE_READ(queue, rq, clock));
	return start < now ? start : 0;
}

static __always_inline struct history *history_make(struct cfs_rq *queue)
{
	struct history *history = history_of(queue);
	__u64 key = (__u64)queue;

	if (history)
		return history;
	bpf_map_update_elem(&histories, &key, &no_history, BPF_NOEXIST);
	return bpf_map_lookup_elem(&histories, &key);
}

/* A queue is released, or likely will be: what a thread that runs at once has to know. */
static __always_inline void releasing(struct cfs_rq *queue, __u64 start, __u64 now)
{
	struct history *history = history_make(queue);

	if (!history)
		return;
	history->starts[history->periods % KEPT] = start;
	history->ends[history->periods % KEPT] = now;
	history->releasing_ns = now - start;
}

static __always_inline void not_released(struct cfs_rq *queue)
{
	struct history *history = history_of(queue);

	if (!history)
		return;
	history->ends[history->periods % KEPT] = 0;
	history->releasing_ns = 0;
}

/* A queue was throttled from `start` to `now`. */
static __always_inline void history_add(struct cfs_rq *queue, __u64 start, __u64 now)
{
	struct history *history = history_make(queue);

	if (!history)
		return;
	history->releasing_ns = 0;
	history->starts[history->periods % KEPT] = start;
	history->ends[history->periods % KEPT] = now;
	history->periods++;
	history->throttled_ns += now - start;
}

/* Was a queue throttled after `since`?  Then return its history, and in `start` from when. */
static __always_inline struct history *throttled_since(struct cfs_rq *queue, __u64 since,
						       __u64 *start)
{
	struct history *history = history_of(queue);

	if (!history)
		return NULL;
	*start = ~0ULL;
	for (int i = 0; i < KEPT; i++) {
		if (history->ends[i] > since && history->starts[i] < *start)
			*start = history->starts[i];
	}
	return *start == ~0ULL ? NULL : history;
}

#endif
