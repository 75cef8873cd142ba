/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sockets that are tied to a span: who they are, what is remembered of them, and
 * how many records they may make.
 */
#ifndef EBPFTRACE_TIED_SOCK_BPF_H
#define EBPFTRACE_TIED_SOCK_BPF_H

#include "ebpftrace.bpf.h"
#include "kernel_net.bpf.h"

#include <bpf/bpf_endian.h>

/* Whose the socket is now; written by user space, kept by the kernel with the socket. */
struct ebt_sock_tie {
	__u8 trace_id[16];
	__u8 span_id[8];
	__u8 cookie[8]; /* SO_COOKIE, the most significant byte first */
	__u64 since_ns; /* CLOCK_MONOTONIC of the initial time namespace */
};

/* Which socket; follows the head of every record. */
struct ebt_sock_id {
	__u8 cookie[8];
	__u8 local
		[16]; /* IPv6, or IPv4 mapped into it; all zero = none yet, or any; so too below */
	__u8 peer[16];
	__u16 local_port; /* 0 = none yet; so too below */
	__u16 peer_port;
	__u8 protocol; /* IPPROTO_TCP, IPPROTO_UDP */
	__u8 version; /* of IP, as it is on the wire: 4 or 6 */
	__u8 pad[2];
};

EBT_ASSERT(sizeof(struct ebt_sock_tie) == 40, "tie");
EBT_ASSERT(sizeof(struct ebt_sock_id) == 48, "socket");

/* So many records of each kind for each time that a socket is tied. */
const volatile __u32 record_limit = 128;

enum kind {
	KIND_CALL, /* of the application's */
	KIND_PACKET,
	KIND_TROUBLE,
	KINDS,
};

/* What must be remembered of a tied socket between two events. */
struct memory {
	__u8 owner[8]; /* the span that `records` counts for */
	__u32 records[KINDS];
	__u32 skipped;
	__u32 srtt_us; /* as the kernel has it */
	__u64 rtt_ns; /* when it was reported */
	__u64 connect_ns; /* when the first SYN left; 0 = it is answered; so too below */
	__u64 ready_ns; /* when data came that is not read */
	__u64 full_ns; /* when the peer said that it has no room... */
	struct ebt_sock_tie full; /* ...and whom that hurt */
	__u32 copied_seq;
};

/*
 * Socket -> the span it is tied to: storage that the kernel keeps with the
 * socket and frees with it, whatever kind it is.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct ebt_sock_tie);
} ties SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct memory);
} memories SEC(".maps");

/* A packet in a device's queue. */
struct waiting {
	__u64 since;
	__u64 socket;
	__u64 sent; /* skb_mstamp_ns */
	__u32 bytes;
	__u32 pad;
};

/*
 * By address of the packet.  One that was split there, or came to nothing, leaves
 * its entry behind: hence LRU, and more than the address to know a packet by.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct waiting);
} queued SEC(".maps");

/* Something happened to a socket that is tied no more: what was remembered of it need not be so any more. */
static __always_inline void forget(struct sock *sk)
{
	struct memory *memory = bpf_sk_storage_get(&memories, sk, NULL, 0);

	if (!memory)
		return;
	memory->connect_ns = 0;
	memory->ready_ns = 0;
	memory->full_ns = 0;
	memory->copied_seq = 0;
}

/* NULL for nearly every socket there is, at the cost of a load. */
static __always_inline struct ebt_sock_tie *tie_of(struct sock *sk)
{
	struct ebt_sock_tie *tie;

	if (!sk || !sk->sk_bpf_storage)
		return NULL;
	tie = bpf_sk_storage_get(&ties, sk, NULL, 0);
	if (!tie)
		forget(sk);
	return tie;
}

static __always_inline struct memory *memory_of(struct sock *sk)
{
	struct memory *memory =
		bpf_sk_storage_get(&memories, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!memory)
		ebt_count_drop(EBT_DROP_MAP_FULL);
	return memory;
}

/* May this tie have one more record of this kind? */
static __always_inline bool within_limit(struct sock *sk, const struct ebt_sock_tie *tie,
					 enum kind kind)
{
	struct memory *memory = memory_of(sk);

	if (!memory)
		return false;
	if (*(__u64 *)memory->owner != *(const __u64 *)tie->span_id) {
		__builtin_memcpy(memory->owner, tie->span_id, sizeof(memory->owner));
		__builtin_memset(memory->records, 0, sizeof(memory->records));
	}
	if (memory->records[kind] < record_limit) {
		memory->records[kind]++;
		return true;
	}
	memory->skipped++;
	ebt_count_drop(EBT_DROP_LIMIT);
	return false;
}

static __always_inline void map_ipv4(__u8 *address, __be32 ipv4)
{
	if (!ipv4)
		return;
	address[10] = 0xff;
	address[11] = 0xff;
	__builtin_memcpy(address + 12, &ipv4, sizeof(ipv4));
}

static __always_inline bool is_mapped(const __u8 *address)
{
	const __u32 *words = (const __u32 *)address;

	return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

static __always_inline void fill_id(struct ebt_sock_id *id, const struct ebt_sock_tie *tie,
				    struct sock *sk)
{
	__builtin_memcpy(id->cookie, tie->cookie, sizeof(id->cookie));
	id->protocol = sk->sk_protocol;
	id->local_port = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	id->peer_port = bpf_ntohs(sk->__sk_common.skc_dport);
	id->version = 4;
	if (sk->__sk_common.skc_family == AF_INET) {
		map_ipv4(id->local, sk->__sk_common.skc_rcv_saddr);
		map_ipv4(id->peer, sk->__sk_common.skc_daddr);
		return;
	}
	bpf_core_read(id->local, sizeof(id->local), &sk->__sk_common.skc_v6_rcv_saddr);
	bpf_core_read(id->peer, sizeof(id->peer), &sk->__sk_common.skc_v6_daddr);
	if (!is_mapped(id->local) && !is_mapped(id->peer))
		id->version = 6;
}

/* What began before the socket was this span's is shown from when it was. */
static __always_inline __u64 start_in(const struct ebt_sock_tie *tie, __u64 ts_ns)
{
	return ts_ns < tie->since_ns ? tie->since_ns : ts_ns;
}

#define SOCK_RESERVE(record_t, type_, ts_ns_, tie_, sk_)                                           \
	({                                                                                         \
		record_t *found_ =                                                                 \
			ebt_reserve(record_t, type_, ts_ns_, (tie_)->trace_id, (tie_)->span_id);   \
		if (found_)                                                                        \
			fill_id(&found_->sock, tie_, sk_);                                         \
		found_;                                                                            \
	})

static __always_inline __u32 error_of(int result)
{
	return result < 0 ? -result : 0;
}

/*
 * Is a tracepoint's pointer NULL?  Verifiers from 6.3 to 6.12 take it that it is
 * not, and drop a check that they can see (838a10bd2ebf).
 */
static __always_inline bool is_null(const __u64 *ctx, int argument)
{
	__u64 value = 0;

	barrier_var(ctx); /* or clang goes on with a pointer that is not the context's any more */
	return bpf_probe_read_kernel(&value, sizeof(value), ctx + argument) || !value;
}

/* When TCP sent a packet that was split since, so that net_dev_queue did not see this part of it. */
static __always_inline __u64 sent_at(struct sock *sk, struct sk_buff *skb, __u64 now)
{
	__u64 sent = sk->sk_protocol == IPPROTO_TCP ? BPF_CORE_READ(skb, skb_mstamp_ns) : 0;

	return sent && sent < now ? sent : now;
}

static __always_inline void enqueued(struct sk_buff *skb, __u64 now)
{
	struct waiting waiting = {
		.since = now,
		.socket = (__u64)skb->sk,
		.sent = BPF_CORE_READ(skb, skb_mstamp_ns),
		.bytes = skb->len,
	};
	__u64 key = (__u64)skb;

	if (bpf_map_update_elem(&queued, &key, &waiting, BPF_ANY))
		ebt_count_drop(EBT_DROP_MAP_FULL);
}

/* Since when a packet has been in the queue that it leaves now. */
static __always_inline __u64 dequeued(struct sock *sk, struct sk_buff *skb, __u64 now)
{
	__u64 key = (__u64)skb, since = 0;
	struct waiting *waiting = bpf_map_lookup_elem(&queued, &key);

	if (waiting) {
		if (waiting->socket == (__u64)sk && waiting->bytes <= skb->len &&
		    waiting->sent == BPF_CORE_READ(skb, skb_mstamp_ns))
			since = waiting->since;
		bpf_map_delete_elem(&queued, &key);
	}
	return since ? since : sent_at(sk, skb, now);
}

#endif
