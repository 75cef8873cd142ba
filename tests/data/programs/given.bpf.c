// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A record for each prctl(GIVEN, record), which is the caller's: a test knows every bit of the span that there must be. */
#include "ebpftrace.bpf.h"

#include <asm/unistd.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define GIVEN 0x67697665

enum given_colour {
	RED = 1,
	GREEN = 2,
};

struct given_link {
	__u8 trace_id[16];
	__u8 span_id[8];
};

struct given_record {
	struct ebt_span span;
	struct given_link first;
	struct given_link second;
	__u64 opened;
	__u64 closed;
	__s64 least;
	__u64 most;
	double ratio;
	enum given_colour colour;
	__s32 number;
	__u8 kind;
	__u8 status;
	_Bool flag;
	__u8 address[5];
	char name[32];
	char service[16];
	char error[32];
	char words[32];
	char text[40];
};
EBT_RECORD(given_record);

static const __u8 none[16] = {};

SEC("tp_btf/sys_enter")
int BPF_PROG(sys_enter, struct pt_regs *regs, long id)
{
	struct given_record *record;
	__u64 option, from;

	if (id != __NR_prctl)
		return 0;
#if defined(__TARGET_ARCH_x86)
	option = regs->di;
	from = regs->si;
#else
	option = regs->orig_x0;
	from = regs->regs[1];
#endif
	if (option != GIVEN)
		return 0;
	record = ebt_reserve(struct given_record, 1, 0, none, none);
	if (!record)
		return 0;
	if (bpf_probe_read_user(record, sizeof(*record), (void *)from))
		bpf_ringbuf_discard(record, 0);
	else
		ebt_submit(record);
	return 0;
}
