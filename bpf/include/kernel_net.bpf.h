/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's network types, as kernel.bpf.h has the others: only what is read.
 */
#ifndef EBPFTRACE_KERNEL_NET_BPF_H
#define EBPFTRACE_KERNEL_NET_BPF_H

#include "kernel.bpf.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct bpf_local_storage;

struct sock {
	struct sock_common __sk_common;
	struct bpf_local_storage *sk_bpf_storage;
	__u16 sk_protocol;
	int sk_err;
};

struct inet_sock {
	__be16 inet_sport;
};

struct inet_connection_sock {
	__u8 icsk_retransmits;
};

struct minmax_sample {
	__u32 t;
	__u32 v;
};

struct minmax {
	struct minmax_sample s[3];
};

struct tcp_sock {
	__u32 srtt_us; /* eight times the smoothed round trip time */
	__u32 mdev_us; /* four times the mean deviation */
	struct minmax rtt_min;
	__u32 snd_cwnd;
	__u32 snd_wnd;
	__u32 packets_out;
	__u32 copied_seq;
	__u32 write_seq;
	__u32 snd_nxt;
	__u32 total_retrans;
	__u64 bytes_sent;
	__u64 bytes_received;
};

struct net_device {
	char name[16];
	int ifindex;
};

struct sk_buff {
	struct sock *sk;
	__u64 skb_mstamp_ns; /* CLOCK_MONOTONIC, in what TCP sends */
	char cb[48];
	unsigned int len;
	unsigned char *data;
};

struct socket {
	struct sock *sk;
};

/* The kernel has many more of them, and which differs: whoever shows one takes the name from the kernel's BTF. */
enum skb_drop_reason {
	SKB_NOT_DROPPED_YET = 0,
};

enum sk_rst_reason {
	SK_RST_REASON_NOT_SPECIFIED = 0,
};

/* What a tracepoint passes shows in the record that tracefs makes of it. */
struct trace_event_raw_kfree_skb {
	enum skb_drop_reason reason; /* from 5.17 on */
	void *rx_sk; /* from 6.11 on */
};

struct trace_event_raw_tcp_send_reset {
	enum sk_rst_reason reason; /* from 6.10 on */
};

#pragma clang attribute pop

/* include/linux/socket.h */
#define AF_INET 2
#define AF_INET6 10

/* include/net/tcp_states.h */
#define TCP_SYN_SENT 2
#define TCP_CLOSE 7

/* include/uapi/linux/in.h */
#define IPPROTO_TCP 6

#endif
