// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A record for each getpgid(FIRST + n), with n in it: a test knows exactly which records there must be. */
#include "ebpftrace.bpf.h"

#include <asm/unistd.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define FIRST 0x40000000

/* Records of one call, which all have the same number. */
const volatile __u32 copies = 1;

enum numbered_parity {
	EVEN = 0,
	ODD = 1,
};

struct numbered_record {
	struct ebt_span span;
	__u64 number;
	__u32 pid;
	__u32 tid;
	__u32 cpu;
	enum numbered_parity parity;
	char comm[16];
};
EBT_RECORD(numbered_record);

static const __u8 no_parent[8] = {};

SEC("tp_btf/sys_enter")
int BPF_PROG(sys_enter, struct pt_regs *regs, long id)
{
	__u64 now, argument, trace[2];

	if (id != __NR_getpgid)
		return 0;
#if defined(__TARGET_ARCH_x86)
	argument = regs->di;
#else
	argument = regs->orig_x0;
#endif
	if (argument < FIRST || argument >= FIRST + 0x20000000)
		return 0;
	now = bpf_ktime_get_ns();
	for (__u32 i = 0; i < copies && i < 1024; i++) {
		struct numbered_record *record;

		trace[0] = ebt_random_id();
		trace[1] = ebt_random_id();
		record = ebt_reserve(struct numbered_record, 1, now, (__u8 *)trace, no_parent);
		if (!record)
			continue;
		record->number = argument - FIRST;
		record->pid = bpf_get_current_pid_tgid() >> 32;
		record->tid = bpf_get_current_pid_tgid();
		record->parity = record->number & 1 ? ODD : EVEN;
		record->cpu = bpf_get_smp_processor_id();
		bpf_get_current_comm(record->comm, sizeof(record->comm));
		ebt_submit(record);
	}
	return 0;
}
