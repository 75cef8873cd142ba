// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Every binary that is started below a context with this program enabled, or
 * below a configured root, is a span from its exec to its end.
 */
#include "ebpftrace.bpf.h"
#include "exec-trace.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define ROOT_NAME 64
#define STATUS_EXECED (-1)

EBT_RECORD(ebt_exec_process);

/* Traced processes: the record that is sent when the binary they run ends. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct ebt_exec_process);
} procs SEC(".maps");

/* Paths ("/usr/bin/bash") and names ("bash", 15 bytes of them) that start a trace of their own. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, char[ROOT_NAME]);
	__type(value, __u8);
} roots SEC(".maps");

/* What a new entry of `procs` starts as; a record is too large for the stack. */
static const struct ebt_exec_process no_process = {};

static __always_inline bool is_zero(const __u8 *id)
{
	return *(const __u64 *)id == 0;
}

static __always_inline struct ebt_exec_process *procs_add(__u32 tgid)
{
	if (bpf_map_update_elem(&procs, &tgid, &no_process, BPF_ANY)) {
		ebt_count_drop(EBT_DROP_MAP_FULL);
		return NULL;
	}
	return bpf_map_lookup_elem(&procs, &tgid);
}

static __always_inline void submit(struct ebt_exec_process *process, __u64 now, int status)
{
	process->status = status;
	process->span.duration_ns = now - process->span.hdr.ts_ns;
	if (bpf_ringbuf_output(&events, process, sizeof(*process), ebt_wakeup_flags()))
		ebt_count_drop(EBT_DROP_RING_FULL);
}

/* Fires in the forking thread, before the child runs; also for new threads. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(sched_process_fork, struct task_struct *parent, struct task_struct *child)
{
	struct ebt_exec_process *process, *forker;
	__u32 parent_tgid = parent->tgid, tgid = child->tgid;
	struct ebt_thread thread;

	if (child->pid != child->tgid)
		return 0; /* a thread */
	if (ebt_thread_find(parent, &thread) && ebt_enabled(thread.slot)) {
		process = procs_add(tgid);
		if (!process)
			return 0;
		__builtin_memcpy(process->span.trace_id, thread.slot->trace_id, 16);
		__builtin_memcpy(process->span.parent_span_id, thread.slot->span_id, 8);
		return 0;
	}
	forker = bpf_map_lookup_elem(&procs, &parent_tgid);
	if (!forker)
		return 0;
	process = procs_add(tgid);
	if (!process)
		return 0;
	__builtin_memcpy(process->span.trace_id, forker->span.trace_id, 16);
	/* below the binary that forked; below its own parent while it has not called exec */
	if (is_zero(forker->span.span_id))
		__builtin_memcpy(process->span.parent_span_id, forker->span.parent_span_id, 8);
	else
		__builtin_memcpy(process->span.parent_span_id, forker->span.span_id, 8);
	return 0;
}

static __always_inline bool is_root(struct task_struct *task, struct linux_binprm *bprm)
{
	char name[ROOT_NAME] = {};

	bpf_probe_read_kernel_str(name, sizeof(name), bprm->filename);
	if (bpf_map_lookup_elem(&roots, name))
		return true;
	__builtin_memset(name, 0, sizeof(name));
	bpf_probe_read_kernel_str(name, sizeof(task->comm), task->comm);
	return bpf_map_lookup_elem(&roots, name);
}

static __always_inline struct ebt_exec_process *new_root(__u32 tgid)
{
	struct ebt_exec_process *process = procs_add(tgid);
	__u64 high = ebt_random_id(), low = ebt_random_id();

	if (!process)
		return NULL;
	__builtin_memcpy(process->span.trace_id, &high, sizeof(high));
	__builtin_memcpy(process->span.trace_id + sizeof(high), &low, sizeof(low));
	return process;
}

static __always_inline void read_args(struct ebt_exec_process *process, struct task_struct *task)
{
	unsigned long start = BPF_CORE_READ(task, mm, arg_start);
	__u32 size = BPF_CORE_READ(task, mm, arg_end) - start;

	process->args_size = size;
	if (size > EBT_EXEC_ARGS)
		size = EBT_EXEC_ARGS;
	/* the last arguments of a longer argv before must not show behind these */
	bpf_probe_read_kernel(process->args, sizeof(process->args), no_process.args);
	bpf_probe_read_user(process->args, size, (void *)start);
}

/* Fires when the new binary is in place and the old one is gone, in the process itself. */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(sched_process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct ebt_exec_process *process;
	struct task_struct *parent;
	__u64 now, id = ebt_random_id();
	__u32 tgid = task->tgid;

	process = bpf_map_lookup_elem(&procs, &tgid);
	if (!process && is_root(task, bprm))
		process = new_root(tgid);
	if (!process)
		return 0;
	now = bpf_ktime_get_ns();
	if (!is_zero(process->span.span_id)) {
		submit(process, now, STATUS_EXECED);
		process->chain++;
	}
	__builtin_memcpy(process->span.span_id, &id, sizeof(id));
	process->span.hdr.ts_ns = now;
	process->span.hdr.type = EBT_EXEC_PROCESS;
	process->span.hdr.len = sizeof(*process);
	process->pid = ebt_innermost_pid(task);
	parent = task->real_parent;
	process->parent_pid = parent ? ebt_innermost_pid(parent) : 0;
	bpf_probe_read_kernel_str(process->path, sizeof(process->path), bprm->filename);
	read_args(process, task);
	return 0;
}

/* Fires for each thread; the process ends with its last one (signal->live is down to 0). */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	struct ebt_exec_process *process;
	__u32 tgid = task->tgid;
	int status;

	process = bpf_map_lookup_elem(&procs, &tgid);
	if (!process || signal->live.counter > 0)
		return 0;
	status = signal->flags & SIGNAL_GROUP_EXIT ? signal->group_exit_code : task->exit_code;
	if (!is_zero(process->span.span_id))
		submit(process, bpf_ktime_get_ns(), status);
	bpf_map_delete_elem(&procs, &tgid);
	return 0;
}
