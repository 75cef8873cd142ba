/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What user space and the BPF programs agree on: the context slot, the thread
 * line, the causes of lost time and the head of every record.  Included by the
 * BPF objects, the publisher extension and the layout tests; nothing in here
 * may depend on the side that includes it.
 */
#ifndef EBPFTRACE_ABI_H
#define EBPFTRACE_ABI_H

#include <linux/types.h>

/* A power of two: slots of one process, and lines beside them. */
#define EBT_TABLE_BITS 10
#define EBT_TABLE_SLOTS (1U << EBT_TABLE_BITS)
/* Open addressing looks at this many neighbours, no more. */
#define EBT_TABLE_PROBES 16
/* Tid of a slot whose thread has ended: free to claim, not the end of a probe. */
#define EBT_TID_GONE 0xffffffffU
/* A power of two: 64-bit words of the map `publishers`. */
#define EBT_PUBLISHER_WORDS 1024U

/*
 * The trace context a thread runs now, written by the thread, one cache line.
 * Bytes 0-27 are an OTEP 4947 thread context record: trace_id, span_id in W3C
 * byte order, `valid` is 1 only while the record is whole.
 */
struct ebt_slot {
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 valid;
	__u8 trace_flags;
	__u16 attrs_size; /* always 0 */
	__u32 mask; /* programs enabled for this context */
	__u32 tid; /* owner, in its innermost pid namespace; 0 = never used */
	__u32 generation; /* counts the owners of this slot */
	__u64 stamp_addr; /* user address of a struct ebt_python; 0 = none */
	__u64 stamp; /* ebt_stamp() of it when this was published */
	__u64 claimed_ns; /* CLOCK_MONOTONIC */
};

/*
 * What CPython keeps of a thread's contexts, as it lies in its PyThreadState.
 * Another context, another thread state at the same address, one that is being
 * taken down: at least one of these differs then.
 */
struct ebt_python {
	__u64 context; /* address of the contextvars.Context */
	__u64 switches; /* counts the contexts that took over */
	__u64 thread; /* a number that no other thread state of the interpreter ever had */
};

/* Where wall time goes; the order is that of the ebpftrace.time.* attributes. */
enum ebt_cause {
	EBT_ON_CPU = 0,
	EBT_RUN_QUEUE = 1,
	EBT_THROTTLED = 2,
	EBT_DISK = 3,
	EBT_NETWORK = 4,
	EBT_LOCK = 5,
	EBT_SLEEP = 6,
	EBT_PAGE_FAULT = 7,
	EBT_OTHER = 8,
	EBT_CAUSES = 9,
};

/*
 * The kernel's account of one thread, beside its slot; user space maps it
 * read-only.  The first two cache lines are the thread's breakdown: the kernel
 * writes them only while the thread is switched out, so the thread itself reads
 * a consistent set when `switches` is the same before and after.
 */
struct ebt_line {
	__u64 owner; /* tid | generation << 32 of the slot this belongs to */
	__u64 switches;
	__u64 on_since; /* ns, CLOCK_MONOTONIC: last time it was switched in */
	__u64 times[EBT_CAUSES]; /* ns */
	__u64 lost; /* records lost while this thread's context was the parent */
	__u64 last_on; /* it ran from here... */
	__u64 last_off; /* ...to here, then waited until on_since; 0 = not known */
	__u64 exec_ns; /* the CPU time it had used in its life when it was switched out */
	__u64 off_since; /* 0 while it runs */
	__u64 woken_at; /* 0 until it is woken */
	/* the programs' own from here on, but for `cause` */
	__u8 trace_id[16]; /* its context when it was switched out... */
	__u8 span_id[8];
	__u32 mask; /* ...and the programs it had enabled; 0 = none */
	__s32 syscall; /* the one it blocked in; -1 = none */
	__u32 waker_tid; /* 0 = an interrupt, or not known */
	__u8 cause; /* enum ebt_cause */
	__u8 pad[3];
	char waker_comm[16];
	__u64 queue; /* the one that it waits in... */
	__u64 queue_throttled_ns; /* ...and how long that had been throttled, then */
	__u64 private_reserved[5];
};

/* Why a record, or what it would have said, was lost. */
enum ebt_drop {
	EBT_DROP_RING_FULL = 0, /* the reader did not keep up */
	EBT_DROP_MAP_FULL = 1, /* a state map had no room */
	EBT_DROP_LIMIT = 2, /* more than the program makes by its own rule */
	EBT_DROPS = 3,
};

/* The head of every record. */
struct ebt_hdr {
	__u64 ts_ns; /* CLOCK_MONOTONIC: start of the span */
	__u32 type; /* which record of its program */
	__u32 len; /* bytes, this head included */
};

/* The head of every record that becomes a span. */
struct ebt_span {
	struct ebt_hdr hdr;
	__u8 trace_id[16];
	__u8 parent_span_id[8]; /* all zero: a root span */
	__u8 span_id[8];
	__u64 duration_ns; /* 0: an event */
};

#ifdef __cplusplus
#define EBT_ASSERT static_assert
#else
#define EBT_ASSERT _Static_assert
#endif
EBT_ASSERT(sizeof(struct ebt_slot) == 64, "a slot is one cache line");
EBT_ASSERT(sizeof(struct ebt_line) == 256, "a line is four cache lines");
EBT_ASSERT(sizeof(struct ebt_hdr) == 16, "record head");
EBT_ASSERT(sizeof(struct ebt_span) == 56, "span head");

/*
 * One number for all three.  The factors, 2^64 by the golden ratio and by that of
 * the plastic number, keep sums of small multiples far apart.
 */
static inline __u64 ebt_stamp(const struct ebt_python *python)
{
	return python->context + python->switches * 0x9e3779b97f4a7c15ULL +
	       python->thread * 0xc13fa9a902a6328fULL;
}

/* Home of a tid in the table (Knuth's multiplicative hash). */
static inline __u32 ebt_slot_home(__u32 tid)
{
	return (tid * 2654435761U) >> (32 - EBT_TABLE_BITS);
}

#endif
