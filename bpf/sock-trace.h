/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Records of sock-trace.bpf.c. */
#ifndef EBPFTRACE_SOCK_H
#define EBPFTRACE_SOCK_H

#include "tied_sock.bpf.h"

enum ebt_sock_type {
	EBT_SOCK_CONNECT = 1,
	EBT_SOCK_STATE = 2,
	EBT_SOCK_SEND = 3,
	EBT_SOCK_QUEUE = 4,
	EBT_SOCK_RECEIVE = 5,
	EBT_SOCK_RTT = 6,
	EBT_SOCK_RETRANSMIT = 7,
	EBT_SOCK_ZERO_WINDOW = 8,
	EBT_SOCK_RESET_SENT = 9,
	EBT_SOCK_DROP = 10,
	EBT_SOCK_ERROR = 11,
	EBT_SOCK_DESTROY = 12,
	EBT_SOCK_RELEASE = 13,
	EBT_SOCK_RESET_RECEIVED = 14,
};

/* From the first SYN to the answer. */
struct ebt_sock_connect {
	struct ebt_span span;
	struct ebt_sock_id sock;
	__u32 rtt_us; /* 0 = not known; so too below */
	__u32 error; /* errno; 0 = none; so too below */
	__u8 state; /* the one it led to */
	__u8 pad[7];
};

struct ebt_sock_state {
	struct ebt_span span;
	struct ebt_sock_id sock;
	__u8 old_state; /* TCP_*, include/net/tcp_states.h; so too below */
	__u8 new_state;
	__u8 pad[6];
};

/* The application wrote. */
struct ebt_sock_send {
	struct ebt_span span;
	struct ebt_sock_id sock;
	__u32 bytes;
	__u32 error;
};

/* From the device's queue to the device. */
struct ebt_sock_queue {
	struct ebt_span span;
	struct ebt_sock_id sock;
	__u32 bytes; /* with headers; so too below */
	__u32 ifindex;
	char device[16];
};

/* From the arrival of data to the application's reading it. */
struct ebt_sock_receive {
	struct ebt_span span;
	struct ebt_sock_id sock;
	__u64 waited_ns; /* also before the span it belongs to began */
	__u32 bytes;
	__u8 pad[4];
};

/* A new round trip time. */
struct ebt_sock_rtt {
	struct ebt_span span;
	struct ebt_sock_id sock;
	__u32 smoothed_us;
	__u32 deviation_us;
	__u32 least_us;
	__u32 congestion_window; /* packets */
	__u32 send_window; /* bytes */
	__u32 unacknowledged; /* packets */
};

struct ebt_sock_retransmit {
	struct ebt_span span;
	struct ebt_sock_id sock;
	__u32 sequence;
	__u32 bytes; /* of data: none in a SYN or FIN */
	__u32 timeouts; /* in a row; 0 = sent again for another reason */
	__u32 total; /* of the connection, before this one */
	__u8 state;
	__u8 pad[7];
};

/* The peer had no room: from its saying so to its saying otherwise, or to the connection's end. */
struct ebt_sock_zero_window {
	struct ebt_span span;
	struct ebt_sock_id sock;
	__u32 unsent; /* bytes that waited in the socket when it ended */
	__u8 opened; /* the peer has room again */
	__u8 pad[3];
};

struct ebt_sock_reset {
	struct ebt_span span;
	struct ebt_sock_id sock;
	enum sk_rst_reason reason; /* 0 = it tells none */
	__u8 received; /* else sent */
	__u8 state;
	__u8 pad[2];
};

/* The kernel threw a packet of the socket away. */
struct ebt_sock_drop {
	struct ebt_span span;
	struct ebt_sock_id sock;
	enum skb_drop_reason reason; /* 0 = it tells none */
	__u32 bytes;
	__u32 error;
	__u8 received; /* else on its way out */
	__u8 pad[3];
};

/* The socket has an error for the application. */
struct ebt_sock_error {
	struct ebt_span span;
	struct ebt_sock_id sock;
	__u32 error;
	__u8 state;
	__u8 pad[3];
};

/* The application let go of the socket. */
struct ebt_sock_release {
	struct ebt_span span;
	struct ebt_sock_id sock;
};

/* The kernel forgot the connection. */
struct ebt_sock_destroy {
	struct ebt_span span;
	struct ebt_sock_id sock;
	__u64 sent; /* bytes of data, in its life; so too below */
	__u64 received;
	__u32 retransmits;
	__u32 skipped; /* records over the limit */
};

EBT_ASSERT(sizeof(struct ebt_sock_connect) == 120, "record");
EBT_ASSERT(sizeof(struct ebt_sock_state) == 112, "record");
EBT_ASSERT(sizeof(struct ebt_sock_send) == 112, "record");
EBT_ASSERT(sizeof(struct ebt_sock_queue) == 128, "record");
EBT_ASSERT(sizeof(struct ebt_sock_receive) == 120, "record");
EBT_ASSERT(sizeof(struct ebt_sock_rtt) == 128, "record");
EBT_ASSERT(sizeof(struct ebt_sock_retransmit) == 128, "record");
EBT_ASSERT(sizeof(struct ebt_sock_zero_window) == 112, "record");
EBT_ASSERT(sizeof(struct ebt_sock_reset) == 112, "record");
EBT_ASSERT(sizeof(struct ebt_sock_drop) == 120, "record");
EBT_ASSERT(sizeof(struct ebt_sock_error) == 112, "record");
EBT_ASSERT(sizeof(struct ebt_sock_release) == 104, "record");
EBT_ASSERT(sizeof(struct ebt_sock_destroy) == 128, "record");

#endif
