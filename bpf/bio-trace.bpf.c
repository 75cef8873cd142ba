// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Requests to block devices: how long each waited in the queue and how long the
 * device took, under the span of the thread that submitted it, or of the thread
 * that had written its data into the page cache before.
 */
#include <asm/errno.h>

#include "ebpftrace.bpf.h"
#include "bio-trace.h"
#include "page_cache.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Trace requests that no span led to, each as a trace of its own. */
const volatile bool trace_all = false;
/* A request that took less from its submission to its end makes no span. */
const volatile __u64 min_latency_ns = 0;
/*
 * Set from the kernel's BTF: until 5.11 tracepoints pass the queue before the
 * request (a54895fa057c, also in later releases of 5.10) and before the bio.
 * block_rq_complete never does.
 */
const volatile bool block_rq_has_queue = false;
const volatile bool block_getrq_has_queue = false;
/* Set when block_io_start below is loaded: since 6.5 (5a80bd075f3b). */
const volatile bool has_block_io_start = false;

#define REQ_OP_MASK 0xff
/* Requests whose first bio was merged in front of the one that we know: how far to look behind it. */
#define FRONT_MERGES 4

#define FLAG(flags, name) (!!((flags) & (1U << bpf_core_enum_value(enum req_flag_bits, name))))

EBT_RECORD(ebt_bio_request);

/* A request on its way. */
struct in_flight {
	struct ebt_bio_request record;
	__u64 parent; /* of its spans */
	__u64 root; /* the same, if that is a span of ours; else 0 */
	__u64 started; /* ns, CLOCK_MONOTONIC, so too below; 0 = not yet */
	__u64 queued; /* first insertion, or when the device gave it back */
	__u64 issued; /* to the device, for the last time */
	__u64 partly; /* done: what is left is not what was asked for */
};

/* By request; by bio until it has one that we see, on kernels without block_io_start. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct in_flight);
} requests SEC(".maps");

/* By queue: who asked last for a flush that has not begun. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u64);
	__type(value, struct origin);
} flushes SEC(".maps");

/* Was there any? Most of the time nothing is traced, and this is all there is to look at. */
static bool any_request;

/*
 * A tracepoint's first argument, the queue not counted.  The barriers keep clang
 * from computing its address, which verifiers do not allow.
 */
static __always_inline __u64 behind_queue(const __u64 *ctx, bool has_queue)
{
	__u64 value;

	if (has_queue) {
		value = ctx[1];
		barrier_var(value);
	} else {
		value = ctx[0];
		barrier_var(value);
	}
	return value;
}

/* What a new entry of `requests` starts as. */
static const struct in_flight no_request = {};

/* A new entry for a request that `origin` caused; without a parent it is a trace of its own. */
static __always_inline struct in_flight *add_request(__u64 key, const struct origin *origin)
{
	struct in_flight *request;

	if (bpf_map_update_elem(&requests, &key, &no_request, BPF_ANY)) {
		ebt_count_drop(EBT_DROP_MAP_FULL);
		return NULL;
	}
	request = bpf_map_lookup_elem(&requests, &key);
	if (!request)
		return NULL;
	any_request = true;
	request->started = bpf_ktime_get_ns();
	request->record.pid = origin->pid;
	request->record.tid = origin->tid;
	__builtin_memcpy(request->record.comm, origin->comm, sizeof(request->record.comm));
	request->parent = origin->parent;
	if (origin->parent) {
		__builtin_memcpy(request->record.span.trace_id, origin->trace_id, 16);
	} else {
		__u64 ids[] = { ebt_random_id(), ebt_random_id() };

		__builtin_memcpy(request->record.span.trace_id, ids, sizeof(ids));
		request->root = request->parent = ebt_random_id();
	}
	return request;
}

/* The flush itself is a request of the queue's own that comes later, from somebody else. */
static __always_inline void remember_flush(struct request_queue *queue, struct origin *origin,
					   const struct in_flight *request)
{
	__u64 key = (__u64)queue;

	__builtin_memcpy(origin->trace_id, request->record.span.trace_id, sizeof(origin->trace_id));
	origin->parent = request->parent;
	if (bpf_map_update_elem(&flushes, &key, origin, BPF_ANY))
		ebt_count_drop(EBT_DROP_MAP_FULL);
}

/* A thread submits a bio that gets a request of its own; `key` is one of the two. */
static __always_inline void begin(__u64 key, struct bio *bio, __u32 flags,
				  struct request_queue *queue)
{
	struct in_flight *request;
	struct origin origin = {};
	bool deferred = false;

	if (!origin_current(&origin)) {
		if ((flags & REQ_OP_MASK) == EBT_BIO_WRITE)
			deferred = origin_of_data(&origin, bio);
		if (!deferred && !trace_all) {
			/* nothing may be left of this request's former use, whose end was not reported */
			if (any_request && bpf_map_lookup_elem(&requests, &key))
				bpf_map_delete_elem(&requests, &key);
			return;
		}
		if (!deferred)
			origin_thread(&origin, bpf_get_current_task_btf());
	}
	request = add_request(key, &origin);
	if (!request)
		return;
	request->record.deferred = deferred;
	if (FLAG(flags, __REQ_PREFLUSH))
		remember_flush(queue, &origin, request);
}

/* Without block_io_start: the entry is still under one of the request's bios. */
static __always_inline struct in_flight *adopt(__u64 key, struct bio *bio)
{
	struct in_flight *request;

	for (int i = 0; i < FRONT_MERGES && bio; i++, bio = BPF_CORE_READ(bio, bi_next)) {
		__u64 old = (__u64)bio;

		request = bpf_map_lookup_elem(&requests, &old);
		if (!request)
			continue;
		if (bpf_map_update_elem(&requests, &key, request, BPF_ANY))
			ebt_count_drop(EBT_DROP_MAP_FULL);
		bpf_map_delete_elem(&requests, &old);
		return bpf_map_lookup_elem(&requests, &key);
	}
	return NULL;
}

/* A request that was not seen when it was submitted. */
static __always_inline struct in_flight *late(__u64 key, struct request *rq)
{
	struct in_flight *request = NULL;
	struct origin origin = {}, *asked;
	struct bio *bio = rq->bio;
	__u64 queue = (__u64)rq->q;

	if (!has_block_io_start && any_request)
		request = adopt(key, bio);
	if (request)
		return request;
	if ((rq->cmd_flags & REQ_OP_MASK) == EBT_BIO_FLUSH && !bio) {
		asked = bpf_map_lookup_elem(&flushes, &queue);
		if (asked) {
			origin = *asked;
			bpf_map_delete_elem(&flushes, &queue);
			return add_request(key, &origin);
		}
	}
	if (!trace_all)
		return NULL;
	origin_thread(&origin, bpf_get_current_task_btf());
	return add_request(key, &origin);
}

static __always_inline struct in_flight *find_request(struct request *rq)
{
	__u64 key = (__u64)rq;
	struct in_flight *request;

	if (!any_request && !trace_all)
		return NULL;
	request = bpf_map_lookup_elem(&requests, &key);
	return request ? request : late(key, rq);
}

static __always_inline enum ebt_bio_operation operation(__u32 flags, __u32 bytes)
{
	__u32 op = flags & REQ_OP_MASK;

	if (op == EBT_BIO_WRITE && !bytes)
		return EBT_BIO_FLUSH; /* what is left of it when the queue has taken the flag off */
#define ZONE_OPERATION(name)                                                                       \
	if (bpf_core_enum_value_exists(enum req_op, REQ_OP_ZONE_##name) &&                         \
	    op == bpf_core_enum_value(enum req_op, REQ_OP_ZONE_##name))                            \
	return EBT_BIO_ZONE_##name
	ZONE_OPERATION(APPEND);
	ZONE_OPERATION(OPEN);
	ZONE_OPERATION(CLOSE);
	ZONE_OPERATION(FINISH);
	ZONE_OPERATION(RESET);
	ZONE_OPERATION(RESET_ALL);
#undef ZONE_OPERATION
	return op;
}

/* A device's number as stat() has it, which is not the kernel's own. */
static __always_inline __u32 device_number(__u32 major, __u32 minor)
{
	return (minor & 0xff) | major << 8 | (minor & ~0xffU) << 12;
}

static __always_inline __u32 device(struct request *rq)
{
	struct request___disk *old = (void *)rq;

	if (bpf_core_field_exists(rq->q->disk))
		return device_number(rq->q->disk->major, rq->q->disk->first_minor);
	if (bpf_core_field_exists(old->rq_disk))
		return device_number(old->rq_disk->major, old->rq_disk->first_minor);
	return 0;
}

/* Bios may have been merged into the request until now. */
static __always_inline void describe(struct in_flight *request, struct request *rq)
{
	struct ebt_bio_request *record = &request->record;
	__u32 flags = rq->cmd_flags;

	record->bytes = rq->__data_len;
	record->sector = record->bytes ? rq->__sector : EBT_BIO_NO_SECTOR;
	record->segments = rq->nr_phys_segments;
	record->operation = operation(flags, record->bytes);
	record->sync = record->operation == EBT_BIO_READ || FLAG(flags, __REQ_SYNC) ||
		       FLAG(flags, __REQ_FUA) || FLAG(flags, __REQ_PREFLUSH);
	record->meta = FLAG(flags, __REQ_META);
	record->fua = FLAG(flags, __REQ_FUA);
	record->readahead = FLAG(flags, __REQ_RAHEAD);
	record->device = device(rq);
}

static __always_inline void emit(struct in_flight *request, __u32 type, __u64 start, __u64 end)
{
	struct ebt_bio_request *record = &request->record;
	__u64 parent = request->parent, id = ebt_random_id();

	if (type == EBT_BIO_REQUEST) {
		id = request->root;
		parent = 0;
	}
	record->span.hdr.type = type;
	record->span.hdr.len = sizeof(*record);
	record->span.hdr.ts_ns = start;
	record->span.duration_ns = end - start;
	__builtin_memcpy(record->span.parent_span_id, &parent, sizeof(parent));
	__builtin_memcpy(record->span.span_id, &id, sizeof(id));
	if (bpf_ringbuf_output(&events, record, sizeof(*record), ebt_wakeup_flags()))
		ebt_count_drop(EBT_DROP_RING_FULL);
}

static __always_inline void finish(struct in_flight *request, __s32 error)
{
	__u64 now = bpf_ktime_get_ns();

	if (now - request->started < min_latency_ns)
		return;
	if (request->queued && request->issued > request->queued)
		emit(request, EBT_BIO_QUEUE, request->queued, request->issued);
	request->record.error = error;
	if (request->issued)
		emit(request, EBT_BIO_SERVICE, request->issued, now);
	if (request->root)
		emit(request, EBT_BIO_REQUEST, request->started, now);
}

/* The errno of a blk_status_t, for those whose numbers never changed; the rest is EIO. */
static const __u8 status_errno[16] = {
	[1] = EOPNOTSUPP, [2] = ETIMEDOUT, [3] = ENOSPC, [4] = ENOLINK, [5] = EREMOTEIO,
	[6] = EBADE,	  [7] = ENODATA,   [8] = EILSEQ, [9] = ENOMEM,	[10] = EIO,
	[11] = EREMCHG,	  [12] = EAGAIN,   [13] = EBUSY,
};

/* Tracepoints pass a blk_status_t since 5.16, a negative errno before. */
static __always_inline __s32 error_number(__s32 error)
{
	__u8 known = 0;

	if (error <= 0)
		return -error;
	if (error < (__s32)sizeof(status_errno))
		known = status_errno[error & (sizeof(status_errno) - 1)];
	return known ? known : EIO;
}

/* The functions are attached in this order, so no request begins whose end would be missed. */

/* Fires whenever the device is done with a part of the request, for the last part too. */
SEC("tp_btf/block_rq_complete")
int block_rq_complete(__u64 *ctx)
{
	struct request *rq = (void *)ctx[0];
	__s32 error = ctx[1];
	__u32 bytes = ctx[2];
	struct in_flight *request;
	__u64 key = (__u64)rq;

	if (!any_request)
		return 0;
	request = bpf_map_lookup_elem(&requests, &key);
	if (!request && !has_block_io_start)
		request = adopt(key, rq->bio); /* it went to no device: who asks for a flush */
	if (!request)
		return 0;
	if (bytes < rq->__data_len) {
		request->partly = true;
		return 0;
	}
	if (!request->issued)
		describe(request, rq);
	finish(request, error_number(error));
	bpf_map_delete_elem(&requests, &key);
	return 0;
}

/* Fires when the request has become a part of another one. */
SEC("tp_btf/block_rq_merge")
int block_rq_merge(__u64 *ctx)
{
	struct request *rq = (void *)behind_queue(ctx, block_rq_has_queue);
	__u64 key = (__u64)rq;

	if (!any_request)
		return 0;
	if (!has_block_io_start)
		adopt(key, rq->bio);
	bpf_map_delete_elem(&requests, &key);
	return 0;
}

/* Fires when the device gives the request back: busy, or to be tried again. */
SEC("tp_btf/block_rq_requeue")
int block_rq_requeue(__u64 *ctx)
{
	struct in_flight *request = find_request((void *)behind_queue(ctx, block_rq_has_queue));

	if (!request)
		return 0;
	request->record.requeues++;
	if (!request->queued)
		request->queued = bpf_ktime_get_ns();
	return 0;
}

/* Fires when the request goes to the device. */
SEC("tp_btf/block_rq_issue")
int block_rq_issue(__u64 *ctx)
{
	struct request *rq = (void *)behind_queue(ctx, block_rq_has_queue);
	struct in_flight *request = find_request(rq);

	if (!request)
		return 0;
	if (!request->partly)
		describe(request, rq);
	request->issued = bpf_ktime_get_ns();
	return 0;
}

/* Fires when the request is put into a queue; one that finds the device free may go past it. */
SEC("tp_btf/block_rq_insert")
int block_rq_insert(__u64 *ctx)
{
	struct in_flight *request = find_request((void *)behind_queue(ctx, block_rq_has_queue));

	if (request && !request->queued)
		request->queued = bpf_ktime_get_ns();
	return 0;
}

/* Fires when a new request has its first bio, in the thread that submits it: since 6.5 (5a80bd075f3b). */
SEC("?tp_btf/block_io_start")
int block_io_start(__u64 *ctx)
{
	struct request *rq = (void *)ctx[0];

	begin((__u64)rq, rq->bio, rq->cmd_flags, rq->q);
	return 0;
}

static __always_inline struct request_queue *queue_of(struct bio *bio)
{
	struct bio___disk *old = (void *)bio;

	if (bpf_core_field_exists(bio->bi_bdev))
		return BPF_CORE_READ(bio, bi_bdev, bd_disk, queue);
	return BPF_CORE_READ(old, bi_disk, queue);
}

/* Fires there too, a little earlier, on all kernels, but does not say which request it is. */
SEC("tp_btf/block_getrq")
int block_getrq(__u64 *ctx)
{
	struct bio *bio = (void *)behind_queue(ctx, block_getrq_has_queue);

	if (has_block_io_start)
		return 0;
	begin((__u64)bio, bio, bio->bi_opf, queue_of(bio));
	return 0;
}

/* Fires when a folio of the page cache that was clean becomes dirty, in the thread that wrote to it. */
SEC("?tp_btf/writeback_dirty_folio")
int writeback_dirty_folio(__u64 *ctx)
{
	folio_dirtied(ctx[0], ctx[1]);
	return 0;
}

/* Its name until 5.18 (203a31516616). */
SEC("?tp_btf/writeback_dirty_page")
int writeback_dirty_page(__u64 *ctx)
{
	folio_dirtied(ctx[0], ctx[1]);
	return 0;
}
