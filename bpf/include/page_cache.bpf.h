/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which span a write belongs to that the kernel does later, for everybody: that
 * of the thread that made the page cache dirty.  Told for each folio (a page, or
 * a few), because a file may have many writers.
 *
 * What is remembered of a folio is true until it becomes dirty again, so nothing
 * needs to be forgotten when it is written; the oldest make room for the newest.
 */
#ifndef EBPFTRACE_PAGE_CACHE_BPF_H
#define EBPFTRACE_PAGE_CACHE_BPF_H

#include "ebpftrace.bpf.h"

/* That are remembered: a power of two. */
#define DIRTY_FOLIOS 16384

/* A thread and the span it ran. */
struct origin {
	__u8 trace_id[16];
	__u64 parent;
	__u32 pid;
	__u32 tid;
	char comm[16];
};

/* A part of the page cache that a traced thread made dirty. */
struct dirty_folio {
	__u64 mapping; /* its file: after the folio's next life as something else, another */
	__u64 order;
	struct origin origin;
};

/* By folio; with room for the few more that other CPUs may be adding at the same time. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, DIRTY_FOLIOS + 1024);
	__type(key, __u64);
	__type(value, struct dirty_folio);
} dirtied SEC(".maps");

/* Folios of `dirtied` in the order they came, the newest in the oldest's place. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DIRTY_FOLIOS);
	__type(key, __u32);
	__type(value, __u64);
} dirty_order SEC(".maps");

/* Folios that were ever remembered. */
static __u64 dirty_count;

static __always_inline void origin_thread(struct origin *origin, struct task_struct *task)
{
	origin->pid = ebt_innermost_pid(task);
	origin->tid = ebt_innermost_tid(task);
	bpf_probe_read_kernel(origin->comm, sizeof(origin->comm), task->comm);
}

/* The current thread's context, if it has this program enabled. */
static __always_inline bool origin_current(struct origin *origin)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct ebt_thread thread;

	if (!ebt_thread_find(task, &thread) || !ebt_enabled(thread.slot))
		return false;
	__builtin_memcpy(origin->trace_id, thread.slot->trace_id, sizeof(origin->trace_id));
	__builtin_memcpy(&origin->parent, thread.slot->span_id, sizeof(origin->parent));
	origin_thread(origin, task);
	return true;
}

/* The folio that a page belongs to, as a number. */
static __always_inline __u64 page_folio(struct page *page)
{
	unsigned long head = 0;

	if (bpf_core_field_exists(page->compound_head))
		head = BPF_CORE_READ(page, compound_head);
	return head & 1 ? head - 1 : (__u64)page;
}

/* The file that a folio caches now; there are pages only before 5.16. */
static __always_inline __u64 folio_mapping(__u64 folio)
{
	struct folio *now = (void *)folio;
	struct page *page = (void *)folio;

	if (bpf_core_field_exists(now->mapping))
		return (__u64)BPF_CORE_READ(now, mapping);
	return (__u64)BPF_CORE_READ(page, mapping);
}

static __always_inline bool folio_dirty(__u64 folio)
{
	struct page___memdesc *now = (void *)folio;
	struct page *page = (void *)folio;
	unsigned long flags;

	if (bpf_core_field_exists(now->flags.f))
		flags = BPF_CORE_READ(now, flags.f);
	else
		flags = BPF_CORE_READ(page, flags);
	return flags & (1UL << bpf_core_enum_value(enum pageflags, PG_dirty));
}

/* Make room in `dirtied`: its oldest folio is written by now, or else its request will be nobody's. */
static __always_inline void forget_folio(__u64 folio, __u64 order)
{
	struct dirty_folio *dirty = bpf_map_lookup_elem(&dirtied, &folio);

	if (!dirty || dirty->order != order)
		return; /* it is younger than that */
	if (folio_mapping(folio) == dirty->mapping && folio_dirty(folio))
		ebt_count_drop(EBT_DROP_MAP_FULL);
	bpf_map_delete_elem(&dirtied, &folio);
}

static __always_inline void remember_folio(__u64 folio, struct dirty_folio *dirty)
{
	__u32 place;
	__u64 *oldest;

	dirty->order = __sync_fetch_and_add(&dirty_count, 1);
	place = dirty->order & (DIRTY_FOLIOS - 1);
	oldest = bpf_map_lookup_elem(&dirty_order, &place);
	if (!oldest)
		return;
	if (*oldest)
		forget_folio(*oldest, dirty->order - DIRTY_FOLIOS);
	*oldest = folio;
	if (bpf_map_update_elem(&dirtied, &folio, dirty, BPF_ANY))
		ebt_count_drop(EBT_DROP_MAP_FULL);
}

/* A folio that was clean is dirty now. */
static __always_inline void folio_dirtied(__u64 folio, __u64 mapping)
{
	struct dirty_folio dirty = { .mapping = mapping };

	if (origin_current(&dirty.origin))
		remember_folio(folio, &dirty);
	else if (dirty_count && bpf_map_lookup_elem(&dirtied, &folio))
		bpf_map_delete_elem(&dirtied, &folio);
}

/* Who made dirty what this bio writes back? Told by its first folio. */
static __always_inline bool origin_of_data(struct origin *origin, struct bio *bio)
{
	struct bio_vec *vectors;
	struct dirty_folio *dirty;
	__u64 folio;

	if (!dirty_count || !bio)
		return false;
	vectors = BPF_CORE_READ(bio, bi_io_vec);
	if (!vectors)
		return false;
	vectors = (void *)vectors +
		  BPF_CORE_READ(bio, bi_iter.bi_idx) * bpf_core_type_size(struct bio_vec);
	folio = page_folio(BPF_CORE_READ(vectors, bv_page));
	dirty = bpf_map_lookup_elem(&dirtied, &folio);
	if (!dirty || folio_mapping(folio) != dirty->mapping)
		return false;
	*origin = dirty->origin;
	return true;
}

#endif
