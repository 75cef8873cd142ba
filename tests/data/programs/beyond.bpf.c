// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Records of every type of field and every role: each getpgid(FIRST + 256 *
 * kind + n) makes one.
 */
#include "ebpftrace.bpf.h"

#include <asm/unistd.h>
#include <bpf/bpf_endian.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define FIRST 0x42000000

enum kind {
	TYPED,
	ROLES,
	LOOKED_UP,
	WHOLE,
	CUT,
	UNKNOWN,
	NO_TRACE,
	KINDS,
};

enum mode {
	MODE_IDLE = 0,
	MODE_BUSY = 5,
	MODE_LOST = 6,
};

struct point {
	__s16 x;
	__s16 y;
};

struct address {
	__u16 family;
	__u16 port; /* in network order */
	__u8 ip[4];
	__u8 zero[8];
};

struct typed {
	struct ebt_span span;
	__s64 balance;
	__u64 count;
	double ratio;
	float share;
	enum mode mode;
	__s8 small;
	bool good;
	__u8 raw[3];
	char text[8];
	struct point at;
	__u64 when;
	__u64 took;
};
EBT_RECORD(typed);

struct roles {
	struct ebt_span span;
	char title[16];
	char service[16];
	__u32 kind;
	__u32 status;
	__s32 error;
	__u32 pad;
	__u64 half_way;
	__u64 never;
	__u8 other_trace[16];
	__u8 other_span[8];
};
EBT_RECORD(roles);

struct looked_up {
	struct ebt_span span;
	struct address peer;
	__u64 stack[16];
	__u32 uid;
	__u32 gid;
	__u32 pid;
	__s32 error;
	char tag[8];
};
EBT_RECORD(looked_up);

struct whole {
	struct ebt_span span;
	__u32 number;
	enum mode mode;
	struct point at;
	bool good;
	__u8 pad[3];
};
EBT_RECORD(whole);

static const __u8 parent[8] = { 0xaa, 0, 0, 0, 0, 0, 0, 1 };
static const __u8 no_parent[8] = {};

/* What no floating-point instruction of BPF's can make: 1.5 and -0.25. */
static const __u64 one_and_a_half = 0x3ff8000000000000ULL;
static const __u32 minus_a_quarter = 0xbe800000;

static __always_inline void typed(__u64 n, __u64 now, const __u8 *trace_id)
{
	struct typed *record = ebt_reserve(struct typed, TYPED + 1, now, trace_id, parent);

	if (!record)
		return;
	record->span.duration_ns = 500;
	record->balance = -(__s64)n;
	record->count = n;
	__builtin_memcpy(&record->ratio, &one_and_a_half, sizeof(record->ratio));
	__builtin_memcpy(&record->share, &minus_a_quarter, sizeof(record->share));
	record->mode = n % 2 ? MODE_BUSY : 3;
	record->small = -1;
	record->good = n % 2;
	record->raw[2] = 0xfe;
	__builtin_memcpy(record->text, "a\xc3", 2);
	record->at.x = -3;
	record->at.y = 4;
	record->when = n % 2 ? now : 0;
	record->took = 2500000;
	ebt_submit(record);
}

static __always_inline void roles(__u64 n, __u64 now, const __u8 *trace_id)
{
	struct roles *record = ebt_reserve(struct roles, ROLES + 1, now, trace_id, no_parent);

	if (!record)
		return;
	record->span.duration_ns = 1000;
	__builtin_memcpy(record->title, "titled", 7);
	__builtin_memcpy(record->service, n % 2 ? "odd" : "even", 5);
	record->kind = n;
	record->status = n % 3;
	record->error = n == 4 ? -111 : 0;
	record->half_way = now + 500;
	if (n % 2) {
		record->other_trace[15] = 7;
		record->other_span[7] = 8;
	}
	ebt_submit(record);
}

static __always_inline void looked_up(void *ctx, __u64 n, __u64 now, const __u8 *trace_id)
{
	struct looked_up *record =
		ebt_reserve(struct looked_up, LOOKED_UP + 1, now, trace_id, parent);

	if (!record)
		return;
	record->peer.family = 2;
	record->peer.port = bpf_htons(443);
	record->peer.ip[0] = 10;
	record->peer.ip[3] = n;
	bpf_get_stack(ctx, record->stack, sizeof(record->stack), 0);
	record->pid = bpf_get_current_pid_tgid() >> 32;
	record->error = -(__s32)n;
	__builtin_memcpy(record->tag, n % 2 ? "keep" : "drop", 5);
	ebt_submit(record);
}

static __always_inline void whole(__u64 n, __u64 now, const __u8 *trace_id)
{
	struct whole *record = ebt_reserve(struct whole, WHOLE + 1, now, trace_id, parent);

	if (!record)
		return;
	record->number = n;
	record->mode = MODE_LOST;
	record->at.x = 1;
	record->good = true;
	ebt_submit(record);
}

/* A record of a type, which has nothing but its head. */
static __always_inline void head(__u32 type, __u64 now, const __u8 *trace_id)
{
	struct ebt_span record = {};

	ebt_span_init(&record, type, sizeof(record), now, trace_id, parent);
	bpf_ringbuf_output(&events, &record, sizeof(record), 0);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(sys_enter, struct pt_regs *regs, long id)
{
	const __u64 none[2] = {};
	__u64 argument, n, now, trace[2];

	if (id != __NR_getpgid)
		return 0;
#if defined(__TARGET_ARCH_x86)
	argument = regs->di;
#else
	argument = regs->orig_x0;
#endif
	if (argument < FIRST || argument >= FIRST + 256 * KINDS)
		return 0;
	n = argument & 0xff;
	now = bpf_ktime_get_ns();
	trace[0] = bpf_cpu_to_be64(0x1000);
	trace[1] = bpf_cpu_to_be64(n + 1);
	switch ((argument >> 8) & 0xf) {
	case TYPED:
		typed(n, now, (__u8 *)trace);
		break;
	case ROLES:
		roles(n, now, (__u8 *)trace);
		break;
	case LOOKED_UP:
		looked_up(ctx, n, now, (__u8 *)trace);
		break;
	case WHOLE:
		whole(n, now, (__u8 *)trace);
		break;
	case CUT:
		head(WHOLE + 1, now, (__u8 *)trace);
		break;
	case UNKNOWN:
		head(99, now, (__u8 *)trace);
		break;
	case NO_TRACE:
		whole(n, now, (const __u8 *)none);
		break;
	}
	return 0;
}
