// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The other way to hand a context to the kernel: the application calls a
 * function, a uprobe on it reads the arguments and notes them for the thread.
 * PROBED is the shared object, given at compile time.
 */
#include "ebpftrace.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct context {
	__u8 trace_id[16];
	__u8 span_id[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct context);
} contexts SEC(".maps");

SEC("uprobe/" PROBED ":probed")
int on_probed(struct pt_regs *regs)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct context context = {};

#if defined(__TARGET_ARCH_x86)
	bpf_probe_read_user(context.trace_id, sizeof(context.trace_id), (void *)regs->di);
	bpf_probe_read_user(context.span_id, sizeof(context.span_id), (void *)regs->si);
#else
	bpf_probe_read_user(context.trace_id, sizeof(context.trace_id), (void *)regs->regs[0]);
	bpf_probe_read_user(context.span_id, sizeof(context.span_id), (void *)regs->regs[1]);
#endif
	bpf_map_update_elem(&contexts, &tid, &context, BPF_ANY);
	return 0;
}
