// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Both kinds of buffers, each with a record for every getppid(2) of one process: stands in for a BCC program. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile __u32 filter_tgid = 0;

struct call {
	__u64 ts;
	__u32 tgid;
	__s32 number;
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} perf SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} calls SEC(".maps");

SEC("tracepoint/syscalls/sys_enter_getppid")
int on_getppid(void *ctx)
{
	struct call call = { .tgid = bpf_get_current_pid_tgid() >> 32 };
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&calls, &zero);

	if (call.tgid != filter_tgid || !count)
		return 0;
	call.ts = bpf_ktime_get_ns();
	call.number = (__s32)__sync_fetch_and_add(count, 1);
	bpf_get_current_comm(call.comm, sizeof(call.comm));
	bpf_ringbuf_output(&ring, &call, sizeof(call), 0);
	bpf_perf_event_output(ctx, &perf, BPF_F_CURRENT_CPU, &call, sizeof(call));
	return 0;
}
