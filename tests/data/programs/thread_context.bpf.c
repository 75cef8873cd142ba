// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * A reader of OTEP 4947 inside the kernel, which knows nothing of ebpftrace: at
 * a marked system call it keeps the context record of the calling thread.
 */
#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include <linux/types.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define RECORDS 64

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct thread_struct {
	unsigned long fsbase;
};

struct task_struct {
	struct thread_struct thread;
};

struct pt_regs {
	unsigned long di;
};
#pragma clang attribute pop

/* of the thread-local symbol, from the thread pointer; found by whoever loads this */
const volatile __u64 symbol_offset = 0;
/* the marked calls: this number, whose first argument is from here on */
const volatile __u64 syscall_number = 0;
const volatile __u64 first_mark = 0;

struct record {
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 valid;
	__u8 trace_flags;
	__u16 attributes_size;
	__u32 seen; /* 1: no pointer; 2: a record; 3: memory that cannot be read */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RECORDS);
	__type(key, __u32);
	__type(value, struct record);
} records SEC(".maps");

SEC("tp_btf/sys_enter")
int BPF_PROG(on_enter, struct pt_regs *regs, long number)
{
	__u32 index = (__u32)(regs->di - first_mark);
	struct task_struct *task;
	struct record *record;
	void *pointer = NULL;

	if ((__u64)number != syscall_number || regs->di < first_mark || index >= RECORDS)
		return 0;
	record = bpf_map_lookup_elem(&records, &index);
	if (!record)
		return 0;
	task = bpf_get_current_task_btf();
	if (bpf_probe_read_user(&pointer, sizeof(pointer),
				(void *)(task->thread.fsbase + symbol_offset)))
		record->seen = 3;
	else if (!pointer)
		record->seen = 1;
	else if (bpf_probe_read_user(record, offsetof(struct record, seen), pointer))
		record->seen = 3;
	else
		record->seen = 2;
	return 0;
}
