// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Where the time of a traced thread goes: the breakdown of every thread that
 * publishes its context, and spans for the contexts that enabled this program.
 */
#include "ebpftrace.bpf.h"
#include "sched-trace.h"
#include "wait_cause.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* A wait shorter than this is in the breakdown but makes no span. */
const volatile __u64 min_off_cpu_ns = 100000;
/* Set from the kernel's BTF: sched_switch passes prev_state as its fourth argument. */
const volatile bool has_prev_state = false;

EBT_RECORD(ebt_sched_switch);
EBT_RECORD(ebt_sched_wakeup);
EBT_RECORD(ebt_sched_off_cpu);
EBT_RECORD(ebt_sched_migrate);

static __always_inline __u64 line_owner(const struct ebt_slot *slot)
{
	return slot->tid | (__u64)slot->generation << 32;
}

/* Start a thread's account: its slot is new, or had another owner. */
static __always_inline void line_reset(struct ebt_line *line, const struct ebt_slot *slot,
				       __u64 on_since)
{
	__builtin_memset(line->times, 0, sizeof(line->times));
	line->lost = 0;
	line->last_off = 0;
	line->off_since = 0;
	line->woken_at = 0;
	line->mask = 0;
	line->on_since = on_since;
	line->switches++;
	line->owner = line_owner(slot);
}

/* Remember whose span this wait belongs to: at wake-up the thread is not there to ask. */
static __always_inline void line_save_context(struct ebt_line *line, const struct ebt_slot *slot)
{
	line->mask = 0;
	if (!ebt_enabled(slot))
		return;
	__builtin_memcpy(line->trace_id, slot->trace_id, sizeof(line->trace_id));
	__builtin_memcpy(line->span_id, slot->span_id, sizeof(line->span_id));
	line->mask = slot->mask;
}

/* A record about the thread of a line; NULL when there is no room, which is then counted. */
#define LINE_RESERVE(record_t, type_, ts_ns_, line_, task_)                                        \
	({                                                                                         \
		record_t *found_ =                                                                 \
			ebt_reserve(record_t, type_, ts_ns_, (line_)->trace_id, (line_)->span_id); \
		if (found_) {                                                                      \
			found_->pid = ebt_innermost_pid(task_);                                    \
			found_->tid = ebt_innermost_tid(task_);                                    \
		} else {                                                                           \
			(line_)->lost++;                                                           \
		}                                                                                  \
		found_;                                                                            \
	})

static __always_inline void submit_switch(struct ebt_line *line, struct task_struct *prev,
					  struct task_struct *next, bool preempt, long state)
{
	struct ebt_sched_switch *record;

	record = LINE_RESERVE(struct ebt_sched_switch, EBT_SCHED_SWITCH, line->off_since, line,
			      prev);
	if (!record)
		return;
	record->cpu = bpf_get_smp_processor_id();
	record->state = state;
	record->preempt = preempt;
	record->next_tid = next->pid;
	bpf_probe_read_kernel(record->next_comm, sizeof(record->next_comm), next->comm);
	ebt_submit(record);
}

static __always_inline void submit_off_cpu(struct ebt_line *line, struct task_struct *task,
					   __u8 cause, __u64 start, __u64 end)
{
	struct ebt_sched_off_cpu *record;

	if (end - start < min_off_cpu_ns)
		return;
	record = LINE_RESERVE(struct ebt_sched_off_cpu, EBT_SCHED_OFF_CPU, start, line, task);
	if (!record)
		return;
	record->span.duration_ns = end - start;
	record->cpu = bpf_get_smp_processor_id();
	record->cause = cause;
	record->syscall = -1;
	/* Those two are the scheduler's doing: no call led to them, nobody woke it. */
	if (cause != EBT_RUN_QUEUE && cause != EBT_THROTTLED) {
		record->syscall = line->syscall;
		record->waker_tid = line->waker_tid;
		__builtin_memcpy(record->waker_comm, line->waker_comm, sizeof(record->waker_comm));
	}
	ebt_submit(record);
}

/* One of the thread's waits is over: [start, end) went to `cause`. */
static __always_inline void account_wait(struct ebt_line *line, struct task_struct *task,
					 __u8 cause, __u64 start, __u64 end)
{
	if (end <= start || cause >= EBT_CAUSES)
		return;
	line->times[cause] += end - start;
	if (line->mask)
		submit_off_cpu(line, task, cause, start, end);
}

/* The thread could run but for others or its quota: remember where it waits. */
static __always_inline void line_save_queue(struct ebt_line *line, struct task_struct *task)
{
	struct cfs_rq *queue = BPF_CORE_READ(task, se.cfs_rq);

	line->queue = (__u64)queue;
	line->queue_throttled_ns = queue_throttled_ns(queue);
}

/*
 * It waited like that from `start` on.  A thread that had to leave the CPU for
 * its quota got it back, then perhaps waited its turn; one that had to for
 * another thread, or was woken, may have lost its quota while it waited.
 */
static __always_inline void account_turn(struct ebt_line *line, struct task_struct *task,
					 bool throttled_first, __u64 start, __u64 now)
{
	struct cfs_rq *queue = BPF_CORE_READ(task, se.cfs_rq);
	__u64 throttled_ns = 0;

	if ((__u64)queue == line->queue)
		throttled_ns = queue_throttled_ns(queue) - line->queue_throttled_ns;
	if (throttled_ns > now - start)
		throttled_ns = now - start;
	if (!throttled_ns) {
		account_wait(line, task, throttled_first ? EBT_THROTTLED : EBT_RUN_QUEUE, start,
			     now);
	} else if (throttled_first) {
		account_wait(line, task, EBT_THROTTLED, start, start + throttled_ns);
		account_wait(line, task, EBT_RUN_QUEUE, start + throttled_ns, now);
	} else {
		account_wait(line, task, EBT_RUN_QUEUE, start, now - throttled_ns);
		account_wait(line, task, EBT_THROTTLED, now - throttled_ns, now);
	}
}

/* The thread's wait is over: it runs since `now`. */
static __always_inline void resume(struct ebt_line *line, struct task_struct *task, __u64 now)
{
	if (line->woken_at) {
		account_wait(line, task, line->cause, line->off_since, line->woken_at);
		account_turn(line, task, false, line->woken_at, now);
	} else if (line->cause == EBT_RUN_QUEUE || line->cause == EBT_THROTTLED) {
		account_turn(line, task, line->cause == EBT_THROTTLED, line->off_since, now);
	} else {
		account_wait(line, task, line->cause, line->off_since, now);
	}
	line->last_on = line->on_since;
	line->last_off = line->off_since;
	line->off_since = 0;
	line->on_since = now;
	line->switches++;
}

static __always_inline void switch_in(struct ebt_thread *thread, struct task_struct *next,
				      __u64 now)
{
	struct ebt_line *line = ebt_thread_line(next, thread);

	if (!line)
		return;
	if (line->owner != line_owner(thread->slot))
		line_reset(line, thread->slot, now);
	else if (line->off_since)
		resume(line, next, now);
	/* else its switch out was not reported: for all that is known it ran on */
}

static __always_inline void switch_out(struct ebt_thread *thread, struct task_struct *prev,
				       struct task_struct *next, bool preempt, long state,
				       __u64 now)
{
	struct ebt_line *line = ebt_thread_line(prev, thread);
	struct syscall call;
	__u64 exec_ns;

	if (!line)
		return;
	exec_ns = prev->se.sum_exec_runtime;
	if (line->owner != line_owner(thread->slot)) {
		line_reset(line, thread->slot, thread->slot->claimed_ns);
	} else if (line->off_since) {
		/* Its switch in was not reported; the CPU time it used since then tells when that was. */
		__u64 ran = exec_ns - line->exec_ns, gone = now - line->off_since;

		resume(line, prev, now - (ran < gone ? ran : gone));
	}
	line->times[EBT_ON_CPU] += now - line->on_since;
	line->exec_ns = exec_ns;
	line->off_since = now;
	line->woken_at = 0;
	line->waker_tid = 0;
	__builtin_memset(line->waker_comm, 0, sizeof(line->waker_comm));
	task_syscall(prev, &call);
	line->syscall = call.nr;
	line->cause = wait_cause(prev, state, &call);
	if (line->cause == EBT_RUN_QUEUE || line->cause == EBT_THROTTLED)
		line_save_queue(line, prev);
	line_save_context(line, thread->slot);
	if (line->mask)
		submit_switch(line, prev, next, preempt, state);
}

/* Fires on every context switch, with `prev` still current. */
SEC("tp_btf/sched_switch")
int sched_switch(__u64 *ctx)
{
	struct task_struct *prev = (void *)ctx[1];
	struct task_struct *next = (void *)ctx[2];
	struct ebt_thread thread;
	__u64 now = 0;

	if (ebt_thread_find(prev, &thread)) {
		long state = has_prev_state ? (unsigned int)ctx[3] : task_state(prev);

		if (ctx[0]) /* preempted: whatever state it was about to sleep in, it runs on */
			state = TASK_RUNNING;
		now = bpf_ktime_get_ns();
		switch_out(&thread, prev, next, ctx[0], state, now);
	}
	if (ebt_thread_find(next, &thread))
		switch_in(&thread, next, now ? now : bpf_ktime_get_ns());
	return 0;
}

/* Fires in the waker, before the thread is put on a run queue: the one place that knows who. */
SEC("tp_btf/sched_waking")
int BPF_PROG(sched_waking, struct task_struct *task)
{
	struct ebt_thread thread;
	struct ebt_line *line;
	struct task_struct *waker;
	struct syscall call;

	/* from 5.11 on; before, nobody is told to have woken anyone */
	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf))
		return 0;
	if (!ebt_thread_find(task, &thread))
		return 0;
	line = ebt_thread_line(task, &thread);
	if (!line || !line->off_since || !line->mask)
		return 0;
	waker = bpf_get_current_task_btf();
	task_syscall(waker, &call);
	if (!can_wake(line->cause, call.nr))
		return 0;
	line->waker_tid = waker->pid;
	bpf_probe_read_kernel(line->waker_comm, sizeof(line->waker_comm), waker->comm);
	return 0;
}

/* Fires when the thread is on a run queue, perhaps by an interrupt on its new CPU. */
SEC("tp_btf/sched_wakeup")
int BPF_PROG(sched_wakeup, struct task_struct *task)
{
	struct ebt_sched_wakeup *record;
	struct ebt_thread thread;
	struct ebt_line *line;

	if (!ebt_thread_find(task, &thread))
		return 0;
	line = ebt_thread_line(task, &thread);
	/* A wake-up that found it awake (it was just about to sleep) ends no wait. */
	if (!line || !line->off_since || line->woken_at || line->cause == EBT_RUN_QUEUE ||
	    line->cause == EBT_THROTTLED)
		return 0;
	line->woken_at = bpf_ktime_get_ns();
	line_save_queue(line, task);
	if (!line->mask)
		return 0;
	record =
		LINE_RESERVE(struct ebt_sched_wakeup, EBT_SCHED_WAKEUP, line->woken_at, line, task);
	if (!record)
		return 0;
	record->cpu = bpf_get_smp_processor_id();
	record->waker_tid = line->waker_tid;
	__builtin_memcpy(record->waker_comm, line->waker_comm, sizeof(record->waker_comm));
	ebt_submit(record);
	return 0;
}

static __always_inline __u32 task_cpu(struct task_struct *task)
{
	struct task_struct___info *now = (void *)task;
	struct task_struct___cpu *old = (void *)task;

	if (bpf_core_field_exists(now->thread_info.cpu))
		return BPF_CORE_READ(now, thread_info.cpu);
	return BPF_CORE_READ(old, cpu);
}

/* Fires before the thread is another CPU's, on whatever CPU decides so; the thread itself is off CPU. */
SEC("tp_btf/sched_migrate_task")
int BPF_PROG(sched_migrate_task, struct task_struct *task, int dest_cpu)
{
	struct ebt_sched_migrate *record;
	struct ebt_thread thread;
	struct ebt_line *line;

	if (!ebt_thread_find(task, &thread))
		return 0;
	line = ebt_thread_line(task, &thread);
	if (!line || !line->off_since || !line->mask)
		return 0;
	record = LINE_RESERVE(struct ebt_sched_migrate, EBT_SCHED_MIGRATE, bpf_ktime_get_ns(), line,
			      task);
	if (!record)
		return 0;
	record->orig_cpu = task_cpu(task);
	record->dest_cpu = dest_cpu;
	ebt_submit(record);
	return 0;
}
