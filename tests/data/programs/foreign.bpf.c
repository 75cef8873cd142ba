// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Records in the format of ebpf_exporter, without any header of ours: each
 * getpgid(FIRST + 256 * kind + n) makes one, of a kind and with n in it.
 */
#include <linux/bpf.h>

#include <asm/unistd.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

#define FIRST 0x41000000
#define NO_TRACE 255 /* of n: the trace id is zero */
#define NO_SPAN 254 /* of n: the span id and the parent's are */

enum kind {
	STEP,
	STACK,
	FILTERED,
	LOOSE,
	BARE,
	CUT,
};

struct pt_regs {
#if defined(__TARGET_ARCH_x86)
	unsigned long di;
#else
	unsigned long orig_x0;
#endif
} __attribute__((preserve_access_index));

struct head {
	__u64 trace[2];
	__u64 parent;
	__u64 id;
	__u64 begin;
	__u64 took;
};

struct step {
	struct head head;
	__u32 device;
	__u8 verb; /* and three bytes of padding */
	__u64 number;
	__u16 port; /* and six */
	__u64 symbol;
	__u8 address[4];
	__u32 error;
	char text[16];
	__u8 watched;
	__u8 pad[7];
};

struct stack {
	struct head head;
	__u64 frames[20];
};

struct filtered {
	struct head head;
	char comm[16];
};

struct loose {
	__u64 id;
	__u64 begin;
	__u64 number;
};

struct bare {
	struct head head;
	__u32 number;
	__u32 pad;
};

#define RING(name)                                                                                 \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_RINGBUF);                                                \
		__uint(max_entries, 256 * 1024);                                                   \
	} name SEC(".maps")

RING(steps);
RING(stacks);
RING(filtereds);
RING(looses);
RING(bares);

/* Kept filled with the cgroups that the file names. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} watched_groups SEC(".maps");

/* Set by the loader. */
const volatile __u64 kaddr_schedule = 0;

static __always_inline void fill(struct head *head, __u64 n)
{
	head->trace[0] = n == NO_TRACE ? 0 : __builtin_bswap64(0x1000);
	head->trace[1] = n == NO_TRACE ? 0 : __builtin_bswap64(n);
	head->parent = n == NO_SPAN ? 0 : __builtin_bswap64(0x2000 + n);
	head->id = n == NO_SPAN ? 0 : __builtin_bswap64(0x3000 + n);
	head->begin = bpf_ktime_get_ns();
	head->took = n * 1000;
}

static __always_inline void step(__u64 n)
{
	__u64 group = bpf_get_current_cgroup_id();
	struct step *record = bpf_ringbuf_reserve(&steps, sizeof(*record), 0);

	if (!record)
		return;
	__builtin_memset(record, 0, sizeof(*record));
	fill(&record->head, n);
	record->device = 0x7ff0ff; /* no such one */
	record->verb = n % 4;
	record->number = n == 9 ? ~0ULL : n;
	record->port = 8000 + n;
	record->symbol = kaddr_schedule;
	record->address[0] = 127;
	record->address[3] = n;
	record->error = n % 2 ? 32 : 0;
	__builtin_memcpy(record->text, n == 8 ? "caf\xe9\xff\0behind" : "plain\0behind", 12);
	record->watched = bpf_map_lookup_elem(&watched_groups, &group) != 0;
	bpf_ringbuf_submit(record, 0);
}

static __always_inline void stack(void *ctx, __u64 n)
{
	struct stack *record = bpf_ringbuf_reserve(&stacks, sizeof(*record), 0);

	if (!record)
		return;
	__builtin_memset(record, 0, sizeof(*record));
	fill(&record->head, n);
	bpf_get_stack(ctx, record->frames, sizeof(record->frames), 0);
	bpf_ringbuf_submit(record, 0);
}

static __always_inline void filtered(__u64 n)
{
	struct filtered *record = bpf_ringbuf_reserve(&filtereds, sizeof(*record), 0);

	if (!record)
		return;
	__builtin_memset(record, 0, sizeof(*record));
	fill(&record->head, n);
	__builtin_memcpy(record->comm, n % 2 ? "other/1" : "worker/7", 9);
	bpf_ringbuf_submit(record, 0);
}

static __always_inline void loose(__u64 n)
{
	struct loose record = { .id = __builtin_bswap64(0x3000 + n),
				.begin = bpf_ktime_get_ns(),
				.number = n };

	bpf_ringbuf_output(&looses, &record, sizeof(record), 0);
}

static __always_inline void bare(__u64 n, __u32 size)
{
	struct bare record = { .number = n };

	fill(&record.head, n);
	bpf_ringbuf_output(&bares, &record, size, 0);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(sys_enter, struct pt_regs *regs, long id)
{
	__u64 argument, n;

	if (id != __NR_getpgid)
		return 0;
#if defined(__TARGET_ARCH_x86)
	argument = regs->di;
#else
	argument = regs->orig_x0;
#endif
	if (argument < FIRST || argument >= FIRST + 0x1000)
		return 0;
	n = argument & 0xff;
	switch ((argument >> 8) & 0xf) {
	case STEP:
		step(n);
		break;
	case STACK:
		stack(ctx, n);
		break;
	case FILTERED:
		filtered(n);
		break;
	case LOOSE:
		loose(n);
		break;
	case BARE:
		bare(n, sizeof(struct bare));
		break;
	case CUT:
		bare(n, sizeof(struct head));
		break;
	}
	return 0;
}

/* No kernel has it, and the rest goes on without. */
SEC("tp_btf/ebpftrace_no_such_tracepoint")
int BPF_PROG(never)
{
	return 0;
}
