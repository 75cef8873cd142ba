// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Records of every kind that a config may describe; compiled by the tests, attached nowhere. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "ebpftrace_abi.h"

#define KEEP(name) const struct name *const volatile keep_##name = 0

const volatile __u64 kaddr_tcp_sendmsg = 0;
const volatile __u32 kaddr_short = 0;
const volatile __s32 level = -3;
const volatile _Bool loud = 0;
const volatile char greeting[8] = "hello";

enum color {
	RED = 1,
	GREEN = 2,
};

enum offset {
	BEFORE = -1,
	AFTER = 1,
};

struct point {
	__u16 x;
	__u16 y;
};

struct all_kinds {
	struct ebt_span span;
	__u8 u8;
	__s16 s16;
	float f32;
	_Bool flag;
	enum color color;
	enum offset offset;
	struct point at;
	__u64 stack[4];
	char comm[16];
	__u8 bytes[6];
	__u8 pad[2];
	union {
		__u32 v4;
		__u8 v6[16];
	};
	union {
		__u64 number;
		double real;
	} value;
};
KEEP(all_kinds);

enum wide {
	NARROW = 1,
	WIDE = 1ULL << 40,
};

enum wide_signed {
	LOWEST = -(1LL << 40),
	HIGHEST = 1LL << 40,
};

struct wide_enums {
	enum wide wide;
	enum wide_signed wide_signed;
};
KEEP(wide_enums);

struct bits {
	__u64 whole;
	__u32 low : 4;
	__u32 high : 28;
};
KEEP(bits);

struct own_roles {
	__u8 trace_id[16];
	__u8 span_id[8];
	__u64 span_monotonic_timestamp_ns;
	__u32 pid;
};
KEEP(own_roles);

/* The head that ebpf_exporter's programs have. */
struct parent {
	__u64 trace_id_hi;
	__u64 trace_id_lo;
	__u64 span_id;
	__u64 tag;
};

struct base {
	struct parent parent;
	__u64 span_id;
	__u64 span_monotonic_timestamp_ns;
	__u64 span_duration_ns;
};

struct disk {
	struct base base;
	__u32 device;
	__u8 operation; /* and three bytes of padding after it */
};
KEEP(disk);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u64);
	__type(value, __u64);
} cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u32);
} small SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__uint(key_size, 16);
	__uint(value_size, 1);
} roots SEC(".maps");

SEC("raw_tp/sys_enter")
int on_enter(void *ctx)
{
	return kaddr_tcp_sendmsg && level && loud && greeting[0] && kaddr_short;
}

#ifdef NO_SUCH_SECTION
SEC("no_such_section/x")
int nowhere(void *ctx)
{
	return 0;
}
#endif

char LICENSE[] SEC("license") = "Dual BSD/GPL";
