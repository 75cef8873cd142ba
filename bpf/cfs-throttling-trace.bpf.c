// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Time without CPU quota: of threads, below the contexts that enabled this
 * program, and of whole groups, as traces of their own.
 *
 * The kernel has a queue (cfs_rq) for each group and CPU.  A queue whose group
 * has no quota left is throttled: put on its group's list, with a time stamp.
 * A timer of the group gives it quota again and releases the queues on the list.
 * So the list before the timer's function, compared with the queues after it,
 * tells every throttled period to its end, without a hook in the scheduler.
 */
#include "ebpftrace.bpf.h"
#include "cfs-throttling-trace.h"
#include "cfs_history.bpf.h"
#include "cgroup.bpf.h"
#include "wait_cause.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Groups without a context are spans, too. */
const volatile bool trace_all = false;
/* Set from the kernel's BTF: sched_switch passes prev_state as its fourth argument. */
const volatile bool has_prev_state = false;
/* Set by the loader when the kernel takes the functions of these names. */
const volatile bool has_unthrottle_begin = false;
const volatile bool has_unthrottle_end = false;

#define MAX_QUEUES 256 /* of one group: CPUs */

#define member_of(type, member, pointer)                                                           \
	((type *)((void *)(pointer) - bpf_core_field_offset(type, member)))

EBT_RECORD(ebt_cfs_task);
EBT_RECORD(ebt_cfs_period);

/* A traced thread that is off CPU. */
struct wait {
	__u8 trace_id[16];
	__u8 span_id[8];
	__u64 since; /* it could run, but for others or its quota; 0 = it sleeps */
	__u64 queue;
	__u64 throttled_ns; /* of the queue and those above it, then */
	__u64 stopped_in; /* the queue that had no quota; 0 = it was not stopped, so far */
	__u64 cgroup; /* its group's id */
	__u32 cpu;
	__u32 pad;
};

/* By thread id in the initial namespace. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct wait);
} waits SEC(".maps");

struct throttled {
	__u64 queue;
	__u64 clock; /* since when, by the scheduler's clock */
	__u64 start; /* the same by CLOCK_MONOTONIC */
};

/* Queues on a group's list when its timer fired, until the timer's function is done. */
struct release {
	__u64 timer;
	__u64 count;
	struct throttled queues[MAX_QUEUES];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct release);
} releases SEC(".maps");

/* The functions of the two timers that every group has; learned from any group. */
static __u64 period_function;
static __u64 slack_function;

/* --- throttled periods of queues --- */

static __always_inline void submit_period(struct cfs_rq *queue, __u32 type, __u64 start, __u64 end)
{
	__u64 trace_id[2] = { ebt_random_id(), ebt_random_id() };
	const __u8 no_parent[8] = {};
	struct ebt_cfs_period *record;

	record = ebt_reserve(struct ebt_cfs_period, type, start, (__u8 *)trace_id, no_parent);
	if (!record)
		return;
	record->span.duration_ns = end - start;
	record->cgroup = cgroup_of(queue);
	ebt_cgroup_path(node_of(queue), record->cgroup_path);
	record->quota_ns = BPF_CORE_READ(queue, tg, cfs_bandwidth.quota);
	record->period_ns = BPF_CORE_READ(queue, tg, cfs_bandwidth.period);
	record->nr_throttled = BPF_CORE_READ(queue, tg, cfs_bandwidth.nr_throttled);
	record->cpu = BPF_CORE_READ(queue, rq, cpu);
	ebt_submit(record);
}

/* A queue was throttled from `start` on, and is not any more. */
static __always_inline void released(struct cfs_rq *queue, __u32 type, __u64 start, __u64 now)
{
	history_add(queue, start, now);
	if (trace_all)
		submit_period(queue, type, start, now);
}

static __always_inline void learn_functions(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct task_group *group = BPF_CORE_READ(task, se.cfs_rq, tg);

	if (!group)
		return;
	period_function = (__u64)BPF_CORE_READ(group, cfs_bandwidth.period_timer.function);
	slack_function = (__u64)BPF_CORE_READ(group, cfs_bandwidth.slack_timer.function);
}

/* The group whose timer this is; NULL for any other timer. */
static __always_inline struct cfs_bandwidth *timer_owner(struct hrtimer *timer)
{
	__u64 function = (__u64)timer->function;

	if (!bpf_core_field_exists(struct cfs_bandwidth, throttled_cfs_rq))
		return NULL; /* no bandwidth control in this kernel */
	if (!period_function)
		learn_functions();
	if (!function)
		return NULL;
	if (function == period_function)
		return member_of(struct cfs_bandwidth, period_timer, timer);
	if (function == slack_function)
		return member_of(struct cfs_bandwidth, slack_timer, timer);
	return NULL;
}

/* Fires before a timer's function, in its interrupt. */
SEC("tp_btf/hrtimer_expire_entry")
int BPF_PROG(hrtimer_expire_entry, struct hrtimer *timer)
{
	struct cfs_bandwidth *owner;
	struct release *release;
	__u64 head, node = 0, now, start;
	__u32 zero = 0, count;

	if (has_unthrottle_begin && has_unthrottle_end)
		return 0;
	owner = timer_owner(timer);
	if (!owner)
		return 0;
	release = bpf_map_lookup_elem(&releases, &zero);
	if (!release)
		return 0;
	head = (__u64)owner + bpf_core_field_offset(struct cfs_bandwidth, throttled_cfs_rq);
	bpf_probe_read_kernel(&node, sizeof(node), (void *)head);
	now = bpf_ktime_get_ns();
	for (count = 0; count < MAX_QUEUES; count++) {
		struct cfs_rq *queue = member_of(struct cfs_rq, throttled_list, node);

		if (!node || node == head)
			break;
		release->queues[count].queue = (__u64)queue;
		release->queues[count].clock = BPF_CORE_READ(queue, throttled_clock);
		start = throttle_start(queue, release->queues[count].clock, now);
		release->queues[count].start = start;
		if (start)
			releasing(queue, start, now);
		node = (__u64)BPF_CORE_READ(queue, throttled_list.next);
	}
	if (count == MAX_QUEUES)
		ebt_count_drop(EBT_DROP_MAP_FULL);
	release->count = count;
	release->timer = (__u64)timer;
	return 0;
}

/* Where a queue notes that its own CPU is asked to release it; 0 = CPUs are not asked here. */
static __always_inline __u32 asked_offset(void)
{
	struct cfs_rq___csd *queue = NULL;
	__u32 offset = 0;

	if (bpf_core_field_exists(queue->throttled_csd_list)) {
		offset = bpf_core_field_offset(queue->throttled_csd_list);
		barrier_var(offset); /* not to be moved in front of the question */
	}
	return offset;
}

/* Still without quota; a queue that its own CPU is asked to release is not. */
static __always_inline bool stays_throttled(struct cfs_rq *queue, __u64 clock, __u32 asked)
{
	__u64 list = (__u64)queue + asked, next = 0;

	if (!is_throttled(queue) || BPF_CORE_READ(queue, throttled_clock) != clock)
		return false;
	if (!asked)
		return true;
	bpf_probe_read_kernel(&next, sizeof(next), (void *)list);
	return next == list; /* an empty list */
}

/* Fires after a timer's function; it has released what the group's new quota was enough for. */
SEC("tp_btf/hrtimer_expire_exit")
int BPF_PROG(hrtimer_expire_exit, struct hrtimer *timer)
{
	__u32 zero = 0, asked = asked_offset();
	struct release *release;
	__u64 now;

	if (has_unthrottle_begin && has_unthrottle_end)
		return 0;
	release = bpf_map_lookup_elem(&releases, &zero);
	if (!release || release->timer != (__u64)timer)
		return 0;
	release->timer = 0;
	now = bpf_ktime_get_ns();
	for (__u32 i = 0; i < MAX_QUEUES; i++) {
		struct cfs_rq *queue = (void *)release->queues[i].queue;
		__u64 clock = release->queues[i].clock;
		__u64 start = release->queues[i].start;

		if (i >= release->count)
			break;
		if (!start)
			continue;
		if (stays_throttled(queue, clock, asked))
			not_released(queue);
		else
			released(queue, EBT_CFS_PERIOD, start, now);
	}
	return 0;
}

/* Fires for each queue that is to be released, whoever does it: also when a quota is changed. */
SEC("?fentry/unthrottle_cfs_rq")
int BPF_PROG(unthrottle_begin, struct cfs_rq *queue)
{
	struct release *release;
	__u32 zero = 0;

	release = bpf_map_lookup_elem(&releases, &zero);
	if (release)
		release->queues[0].clock = BPF_CORE_READ(queue, throttled_clock);
	return 0;
}

/* Fires when that is done; newer kernels may have found no quota after all. */
SEC("?fexit/unthrottle_cfs_rq")
int BPF_PROG(unthrottle_end, struct cfs_rq *queue)
{
	struct release *release;
	__u64 now, start;
	__u32 zero = 0;

	release = bpf_map_lookup_elem(&releases, &zero);
	if (!release || is_throttled(queue))
		return 0;
	now = bpf_ktime_get_ns();
	start = throttle_start(queue, release->queues[0].clock, now);
	if (start)
		released(queue, EBT_CFS_PERIOD_FUNCTION, start, now);
	return 0;
}

/* --- threads --- */

/* From 6.18 on each task is throttled by itself, on its way to user mode. */
static __always_inline bool tasks_are_marked(void)
{
	struct task_struct___throttled *marked = NULL;

	return bpf_core_field_exists(marked->throttled);
}

static __always_inline void save_wait(struct wait *wait, struct task_struct *task, __u64 now)
{
	struct cfs_rq *queue = BPF_CORE_READ(task, se.cfs_rq);

	wait->since = now;
	wait->queue = (__u64)queue;
	wait->throttled_ns = throttled_so_far(queue);
	wait->stopped_in = task_throttled(task) ? (__u64)throttled_queue(queue) : 0;
	wait->cgroup = wait->stopped_in ? cgroup_of((void *)wait->stopped_in) : 0;
}

static __always_inline void switch_out(struct task_struct *task, const struct ebt_slot *slot,
				       long state)
{
	struct wait wait = {};
	__u32 tid = task->pid;

	if (state & TASK_DEAD)
		return;
	/* where tasks are not marked a sleeper may be woken into a throttled queue */
	if (tasks_are_marked() && (state != TASK_RUNNING || !task_throttled(task)))
		return;
	if (!ebt_enabled(slot))
		return;
	__builtin_memcpy(wait.trace_id, slot->trace_id, sizeof(wait.trace_id));
	__builtin_memcpy(wait.span_id, slot->span_id, sizeof(wait.span_id));
	wait.cpu = bpf_get_smp_processor_id();
	if (state == TASK_RUNNING)
		save_wait(&wait, task, bpf_ktime_get_ns());
	if (bpf_map_update_elem(&waits, &tid, &wait, BPF_ANY))
		ebt_count_drop(EBT_DROP_MAP_FULL);
}

/* What the histories say of a wait: when its throttling began, for how long, by which group. */
static __always_inline bool look_back(struct wait *wait, __u64 *start, __s64 *throttled_ns)
{
	struct cfs_rq *queue = (void *)wait->queue;
	__u64 began, before;

	for (int depth = 0; depth < MAX_DEPTH && queue; depth++) {
		if (throttled_since(queue, wait->since, &began)) {
			/* of the first period, what was over when the wait began */
			before = began < wait->since ? wait->since - began : 0;
			*throttled_ns =
				throttled_so_far((void *)wait->queue) - wait->throttled_ns - before;
			*start = began < wait->since ? wait->since : began;
			if (!wait->stopped_in) {
				wait->stopped_in = (__u64)queue;
				wait->cgroup = cgroup_of(queue);
			}
			return true;
		}
		queue = queue_above(queue);
	}
	return false;
}

static __always_inline void submit_task(struct task_struct *task, const struct wait *wait,
					__u64 start, __u64 now, __s64 throttled_ns)
{
	struct ebt_cfs_task *record;

	record = ebt_reserve(struct ebt_cfs_task, EBT_CFS_TASK, start, wait->trace_id,
			     wait->span_id);
	if (!record)
		return;
	record->span.duration_ns = now - start;
	record->cgroup = wait->cgroup;
	/* it may have been moved meanwhile, and the group be gone */
	if (cgroup_of((void *)wait->stopped_in) == wait->cgroup)
		ebt_cgroup_path(node_of((void *)wait->stopped_in), record->cgroup_path);
	record->throttled_ns = record->run_queue_ns = -1;
	if (throttled_ns >= 0) {
		if (throttled_ns > (__s64)(now - start)) /* groups in groups, throttled at once */
			throttled_ns = now - start;
		record->throttled_ns = throttled_ns;
		record->run_queue_ns = now - start - throttled_ns;
	}
	record->pid = ebt_innermost_pid(task);
	record->tid = ebt_innermost_tid(task);
	record->cpu = wait->cpu;
	ebt_submit(record);
}

static __always_inline void switch_in(struct task_struct *task)
{
	struct wait *wait;
	__u32 tid = task->pid;
	__s64 throttled_ns = -1;
	__u64 start, now;

	wait = bpf_map_lookup_elem(&waits, &tid);
	if (!wait)
		return;
	start = wait->since;
	if (start) {
		bool known = look_back(wait, &start, &throttled_ns);

		now = bpf_ktime_get_ns();
		if ((known || wait->stopped_in) && start < now)
			submit_task(task, wait, start, now, throttled_ns);
	}
	bpf_map_delete_elem(&waits, &tid);
}

/* Fires on every context switch, with `prev` still current. */
SEC("tp_btf/sched_switch")
int sched_switch(__u64 *ctx)
{
	struct task_struct *prev = (void *)ctx[1];
	struct task_struct *next = (void *)ctx[2];
	struct ebt_thread thread;

	if (!bpf_core_field_exists(struct cfs_rq, throttle_count))
		return 0;
	compare_clocks(prev);
	if (ebt_thread_find(prev, &thread)) {
		long state = has_prev_state ? (unsigned int)ctx[3] : task_state(prev);

		if (ctx[0]) /* preempted: whatever state it was about to sleep in, it runs on */
			state = TASK_RUNNING;
		switch_out(prev, thread.slot, state);
	}
	if (ebt_may_publish(next->tgid))
		switch_in(next);
	return 0;
}

/* Fires when a thread is on a run queue: perhaps on a throttled one, where nothing runs. */
SEC("tp_btf/sched_wakeup")
int BPF_PROG(sched_wakeup, struct task_struct *task)
{
	struct wait *wait;
	__u32 tid = task->pid;

	if (tasks_are_marked() || !bpf_core_field_exists(struct cfs_rq, throttle_count) ||
	    !ebt_may_publish(task->tgid))
		return 0;
	wait = bpf_map_lookup_elem(&waits, &tid);
	if (wait && !wait->since)
		save_wait(wait, task, bpf_ktime_get_ns());
	return 0;
}
