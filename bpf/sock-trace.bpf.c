// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What the kernel does with the sockets that an application tied to a span. */
#include "sock-trace.h"
#include "tied_sock.bpf.h"

#include <linux/tcp.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* A round trip time makes a record when it changed, and not more often than this. */
const volatile __u64 min_rtt_interval_ns = 10000000;
/* Waiting in a device's queue for less than this makes no record. */
const volatile __u64 min_queue_ns = 0;
/* Set by the loader: which of the functions in sections "?..." it loaded. */
const volatile bool has_sk_data_ready = false;
const volatile bool has_sock_def_readable = false;
const volatile bool has_sock_recv_length = false;
const volatile bool has_inet_recvmsg = false;

EBT_RECORD(ebt_sock_connect);
EBT_RECORD(ebt_sock_state);
EBT_RECORD(ebt_sock_send);
EBT_RECORD(ebt_sock_queue);
EBT_RECORD(ebt_sock_receive);
EBT_RECORD(ebt_sock_rtt);
EBT_RECORD(ebt_sock_retransmit);
EBT_RECORD(ebt_sock_zero_window);
EBT_RECORD(ebt_sock_reset);
EBT_RECORD(ebt_sock_drop);
EBT_RECORD(ebt_sock_error);
EBT_RECORD(ebt_sock_release);
EBT_RECORD(ebt_sock_destroy);

/* --- the connection's life ---------------------------------------------------- */

static __always_inline void submit_connect(struct sock *sk, const struct ebt_sock_tie *tie,
					   __u64 start, __u64 now, int state)
{
	struct ebt_sock_connect *record;

	record = SOCK_RESERVE(struct ebt_sock_connect, EBT_SOCK_CONNECT, start_in(tie, start), tie,
			      sk);
	if (!record)
		return;
	record->span.duration_ns = now - record->span.hdr.ts_ns;
	record->rtt_us = BPF_CORE_READ((struct tcp_sock *)sk, srtt_us) >> 3;
	record->error = sk->sk_err;
	record->state = state;
	ebt_submit(record);
}

/* The peer has room again, or it does not matter any more. */
static __always_inline void submit_zero_window(struct sock *sk, struct memory *memory, __u64 now,
					       bool opened)
{
	struct ebt_sock_zero_window *record;
	struct tcp_sock *tcp = (struct tcp_sock *)sk;

	record = SOCK_RESERVE(struct ebt_sock_zero_window, EBT_SOCK_ZERO_WINDOW, memory->full_ns,
			      &memory->full, sk);
	if (record) {
		record->span.duration_ns = now - memory->full_ns;
		record->unsent = BPF_CORE_READ(tcp, write_seq) - BPF_CORE_READ(tcp, snd_nxt);
		record->opened = opened;
		ebt_submit(record);
	}
	memory->full_ns = 0;
}

/* Fires in whatever context a TCP connection goes from one state to the next (4.16). */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state, struct sock *sk, int old_state, int new_state)
{
	struct ebt_sock_tie *tie = tie_of(sk);
	struct ebt_sock_state *record;
	struct memory *memory;
	__u64 now;

	if (!tie)
		return 0;
	now = bpf_ktime_get_ns();
	memory = memory_of(sk);
	if (memory && memory->connect_ns && old_state == TCP_SYN_SENT) {
		submit_connect(sk, tie, memory->connect_ns, now, new_state);
		memory->connect_ns = 0;
	}
	if (memory && new_state == TCP_SYN_SENT)
		memory->connect_ns = now;
	if (memory && memory->full_ns && new_state == TCP_CLOSE)
		submit_zero_window(sk, memory, now, false);
	record = SOCK_RESERVE(struct ebt_sock_state, EBT_SOCK_STATE, now, tie, sk);
	if (!record)
		return 0;
	record->old_state = old_state;
	record->new_state = new_state;
	ebt_submit(record);
	return 0;
}

/* Fires when the kernel forgets a TCP socket; what comes later has no socket (4.16). */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroy_sock, struct sock *sk)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	struct ebt_sock_tie *tie = tie_of(sk);
	struct ebt_sock_destroy *record;
	struct memory *memory;

	if (!tie)
		return 0;
	record = SOCK_RESERVE(struct ebt_sock_destroy, EBT_SOCK_DESTROY, bpf_ktime_get_ns(), tie,
			      sk);
	if (!record)
		return 0;
	record->sent = BPF_CORE_READ(tcp, bytes_sent);
	record->received = BPF_CORE_READ(tcp, bytes_received);
	record->retransmits = BPF_CORE_READ(tcp, total_retrans);
	memory = bpf_sk_storage_get(&memories, sk, NULL, 0);
	if (memory)
		record->skipped = memory->skipped;
	ebt_submit(record);
	return 0;
}

/* Fires when the last descriptor of a socket is closed; no tracepoint says so. */
SEC("?fentry/inet_release")
int BPF_PROG(inet_release, struct socket *socket)
{
	struct sock *sk = socket->sk;
	struct ebt_sock_tie *tie = tie_of(sk);
	struct ebt_sock_release *record;

	if (!tie)
		return 0;
	record = SOCK_RESERVE(struct ebt_sock_release, EBT_SOCK_RELEASE, bpf_ktime_get_ns(), tie,
			      sk);
	if (record)
		ebt_submit(record);
	return 0;
}

/* --- what the application wrote and read ------------------------------------------- */

static __always_inline int on_send(struct sock *sk, int result)
{
	struct ebt_sock_tie *tie = tie_of(sk);
	struct ebt_sock_send *record;

	if (!tie || !within_limit(sk, tie, KIND_CALL))
		return 0;
	record = SOCK_RESERVE(struct ebt_sock_send, EBT_SOCK_SEND, bpf_ktime_get_ns(), tie, sk);
	if (!record)
		return 0;
	record->bytes = result > 0 ? result : 0;
	record->error = error_of(result);
	ebt_submit(record);
	return 0;
}

static __always_inline int on_arrival(struct sock *sk)
{
	struct memory *memory;

	if (!tie_of(sk))
		return 0;
	memory = memory_of(sk);
	if (memory && !memory->ready_ns)
		memory->ready_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int on_read(struct sock *sk, int result)
{
	struct ebt_sock_tie *tie = tie_of(sk);
	struct ebt_sock_receive *record;
	struct memory *memory;
	__u64 now, ready;

	if (!tie || result <= 0)
		return 0;
	memory = memory_of(sk);
	if (!memory)
		return 0;
	now = bpf_ktime_get_ns();
	ready = memory->ready_ns ? memory->ready_ns : now;
	memory->ready_ns = 0;
	if (!within_limit(sk, tie, KIND_CALL))
		return 0;
	record = SOCK_RESERVE(struct ebt_sock_receive, EBT_SOCK_RECEIVE, start_in(tie, ready), tie,
			      sk);
	if (!record)
		return 0;
	record->span.duration_ns = now - record->span.hdr.ts_ns;
	record->waited_ns = now - ready;
	record->bytes = result;
	ebt_submit(record);
	return 0;
}

/* Fires at the end of each sendmsg() of any kind (6.3). */
SEC("?tp_btf/sock_send_length")
int BPF_PROG(sock_send_length, struct sock *sk, int result)
{
	return on_send(sk, result);
}

/* Fires at the end of each recvmsg() of any kind (6.3). */
SEC("?tp_btf/sock_recv_length")
int BPF_PROG(sock_recv_length, struct sock *sk, int result)
{
	return on_read(sk, result);
}

/* Fires when data for the application is there (6.3). */
SEC("?tp_btf/sk_data_ready")
int BPF_PROG(sk_data_ready, struct sock *sk)
{
	return on_arrival(sk);
}

/* In place of those three, on kernels without them. */
SEC("?fentry/sock_def_readable")
int BPF_PROG(sock_def_readable__without_sk_data_ready, struct sock *sk)
{
	return on_arrival(sk);
}

SEC("?fexit/inet_sendmsg")
int BPF_PROG(inet_sendmsg__without_sock_send_length, struct socket *socket, void *message,
	     unsigned long size, int result)
{
	return on_send(socket->sk, result);
}

SEC("?fexit/inet6_sendmsg")
int BPF_PROG(inet6_sendmsg__without_sock_send_length, struct socket *socket, void *message,
	     unsigned long size, int result)
{
	return on_send(socket->sk, result);
}

SEC("?fexit/inet_recvmsg")
int BPF_PROG(inet_recvmsg__without_sock_recv_length, struct socket *socket, void *message,
	     unsigned long size, int flags, int result)
{
	return on_read(socket->sk, result);
}

SEC("?fexit/inet6_recvmsg")
int BPF_PROG(inet6_recvmsg__without_sock_recv_length, struct socket *socket, void *message,
	     unsigned long size, int flags, int result)
{
	return on_read(socket->sk, result);
}

/* Fires when TCP data was copied: what is left without all of the above (4.16). */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(tcp_rcv_space_adjust, struct sock *sk)
{
	struct memory *memory;
	__u32 copied, before;

	if (has_sock_recv_length || has_inet_recvmsg || !tie_of(sk))
		return 0;
	memory = memory_of(sk);
	if (!memory)
		return 0;
	copied = BPF_CORE_READ((struct tcp_sock *)sk, copied_seq);
	before = memory->copied_seq;
	memory->copied_seq = copied;
	return before ? on_read(sk, copied - before) : 0;
}

/* --- packets ------------------------------------------------------------------------- */

static __always_inline void on_rtt(struct sock *sk, const struct ebt_sock_tie *tie,
				   struct memory *memory, __u64 now)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	__u32 srtt_us = BPF_CORE_READ(tcp, srtt_us);
	struct ebt_sock_rtt *record;

	if (srtt_us == memory->srtt_us || now - memory->rtt_ns < min_rtt_interval_ns)
		return;
	memory->srtt_us = srtt_us;
	memory->rtt_ns = now;
	if (!within_limit(sk, tie, KIND_PACKET))
		return;
	record = SOCK_RESERVE(struct ebt_sock_rtt, EBT_SOCK_RTT, now, tie, sk);
	if (!record)
		return;
	record->smoothed_us = srtt_us >> 3;
	record->deviation_us = BPF_CORE_READ(tcp, mdev_us) >> 2;
	record->least_us = BPF_CORE_READ(tcp, rtt_min.s[0].v);
	record->congestion_window = BPF_CORE_READ(tcp, snd_cwnd);
	record->send_window = BPF_CORE_READ(tcp, snd_wnd);
	record->unacknowledged = BPF_CORE_READ(tcp, packets_out);
	ebt_submit(record);
}

static __always_inline void on_window(struct sock *sk, const struct ebt_sock_tie *tie,
				      struct memory *memory, const struct tcphdr *tcp, __u64 now)
{
	if (tcp->rst) /* announces no window */
		return;
	if (!tcp->window && !memory->full_ns) {
		memory->full_ns = now;
		memory->full = *tie;
	} else if (tcp->window && memory->full_ns) {
		submit_zero_window(sk, memory, now, true);
	}
}

/* Fires for each packet of an established connection, before it has an effect (4.16). */
SEC("tp_btf/tcp_probe")
int BPF_PROG(tcp_probe, struct sock *sk, struct sk_buff *skb)
{
	struct ebt_sock_tie *tie = tie_of(sk);
	struct memory *memory;
	struct tcphdr tcp;
	__u64 now;

	if (!tie)
		return 0;
	memory = memory_of(sk);
	if (!memory || bpf_probe_read_kernel(&tcp, sizeof(tcp), skb->data))
		return 0;
	now = bpf_ktime_get_ns();
	on_rtt(sk, tie, memory, now);
	on_window(sk, tie, memory, &tcp, now);
	if (has_sk_data_ready || has_sock_def_readable)
		return 0;
	if (!memory->copied_seq)
		memory->copied_seq = BPF_CORE_READ((struct tcp_sock *)sk, copied_seq);
	if (!memory->ready_ns && skb->len > tcp.doff * 4)
		memory->ready_ns = now;
	return 0;
}

/* Fires when a packet goes to a device's queue, or to a device without one. */
SEC("tp_btf/net_dev_queue")
int BPF_PROG(net_dev_queue, struct sk_buff *skb)
{
	if (tie_of(skb->sk))
		enqueued(skb, bpf_ktime_get_ns());
	return 0;
}

/* Fires when the driver is about to be given the packet. */
SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(net_dev_start_xmit, struct sk_buff *skb, struct net_device *device)
{
	struct sock *sk = skb->sk;
	struct ebt_sock_tie *tie = tie_of(sk);
	struct ebt_sock_queue *record;
	__u64 now, start;

	if (!tie)
		return 0;
	now = bpf_ktime_get_ns();
	start = dequeued(sk, skb, now);
	if (now - start < min_queue_ns || !within_limit(sk, tie, KIND_PACKET))
		return 0;
	record = SOCK_RESERVE(struct ebt_sock_queue, EBT_SOCK_QUEUE, start_in(tie, start), tie, sk);
	if (!record)
		return 0;
	record->span.duration_ns = now - record->span.hdr.ts_ns;
	record->bytes = skb->len;
	record->ifindex = device->ifindex;
	bpf_probe_read_kernel_str(record->device, sizeof(record->device), device->name);
	ebt_submit(record);
	return 0;
}

/* --- what went wrong ------------------------------------------------------------------- */

/* Fires when a segment was sent again (4.15). */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_skb, struct sock *sk, struct sk_buff *skb)
{
	struct ebt_sock_tie *tie = tie_of(sk);
	struct ebt_sock_retransmit *record;

	if (!tie || !within_limit(sk, tie, KIND_TROUBLE))
		return 0;
	record = SOCK_RESERVE(struct ebt_sock_retransmit, EBT_SOCK_RETRANSMIT, bpf_ktime_get_ns(),
			      tie, sk);
	if (!record)
		return 0;
	/* struct tcp_skb_cb begins with the sequence number */
	bpf_core_read(&record->sequence, sizeof(record->sequence), &skb->cb);
	record->bytes = skb->len;
	record->timeouts = BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_retransmits);
	record->total = BPF_CORE_READ((struct tcp_sock *)sk, total_retrans);
	record->state = sk->__sk_common.skc_state;
	ebt_submit(record);
	return 0;
}

static __always_inline int on_reset(struct sock *sk, enum ebt_sock_type type, __u32 reason)
{
	struct ebt_sock_tie *tie = tie_of(sk);
	struct ebt_sock_reset *record;

	if (!tie)
		return 0;
	record = SOCK_RESERVE(struct ebt_sock_reset, type, bpf_ktime_get_ns(), tie, sk);
	if (!record)
		return 0;
	record->reason = reason;
	record->received = type == EBT_SOCK_RESET_RECEIVED;
	record->state = sk->__sk_common.skc_state;
	ebt_submit(record);
	return 0;
}

/* Fires when this side aborts a connection, or answers what belongs to none: then without a socket (4.16). */
SEC("tp_btf/tcp_send_reset")
int tcp_send_reset(__u64 *ctx)
{
	__u32 reason = 0;

	if (is_null(ctx, 0))
		return 0;
	if (bpf_core_field_exists(struct trace_event_raw_tcp_send_reset, reason))
		reason = ctx[2];
	return on_reset((struct sock *)ctx[0], EBT_SOCK_RESET_SENT, reason);
}

/* Fires when the peer aborted the connection (4.16). */
SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(tcp_receive_reset, struct sock *sk)
{
	return on_reset(sk, EBT_SOCK_RESET_RECEIVED, 0);
}

static __always_inline int on_drop(struct sock *sk, __u32 reason, __u32 bytes, __u32 error,
				   bool received)
{
	struct ebt_sock_tie *tie = tie_of(sk);
	struct ebt_sock_drop *record;

	if (!tie || !within_limit(sk, tie, KIND_TROUBLE))
		return 0;
	record = SOCK_RESERVE(struct ebt_sock_drop, EBT_SOCK_DROP, bpf_ktime_get_ns(), tie, sk);
	if (!record)
		return 0;
	record->reason = reason;
	record->bytes = bytes;
	record->error = error;
	record->received = received;
	ebt_submit(record);
	return 0;
}

/* Fires when a packet is thrown away rather than used up. */
SEC("tp_btf/kfree_skb")
int kfree_skb(__u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	__u32 reason = 0;

	if (bpf_core_field_exists(struct trace_event_raw_kfree_skb, reason))
		reason = ctx[2];
	if (bpf_core_field_exists(struct trace_event_raw_kfree_skb, rx_sk) && !is_null(ctx, 3))
		return on_drop((struct sock *)ctx[3], reason, skb->len, 0, true);
	return on_drop(skb->sk, reason, skb->len, 0, false);
}

/* Fires when a UDP socket had no room; where kfree_skb names the receiver, that says it already. */
SEC("tp_btf/udp_fail_queue_rcv_skb")
int BPF_PROG(udp_fail_queue_rcv_skb, int result, struct sock *sk)
{
	if (bpf_core_field_exists(struct trace_event_raw_kfree_skb, rx_sk))
		return 0;
	return on_drop(sk, 0, 0, error_of(result), true);
}

/* Fires when a socket has an error to tell: refused, unreachable, timed out, reset (5.14). */
SEC("tp_btf/inet_sk_error_report")
int BPF_PROG(inet_sk_error_report, struct sock *sk)
{
	struct ebt_sock_tie *tie = tie_of(sk);
	struct ebt_sock_error *record;

	if (!tie || !sk->sk_err) /* something else is to be told, such as a time stamp */
		return 0;
	if (!within_limit(sk, tie, KIND_TROUBLE))
		return 0;
	record = SOCK_RESERVE(struct ebt_sock_error, EBT_SOCK_ERROR, bpf_ktime_get_ns(), tie, sk);
	if (!record)
		return 0;
	record->error = sk->sk_err;
	record->state = sk->__sk_common.skc_state;
	ebt_submit(record);
	return 0;
}
