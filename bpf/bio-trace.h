/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Records of bio-trace.bpf.c. */
#ifndef EBPFTRACE_BIO_H
#define EBPFTRACE_BIO_H

#include "ebpftrace_abi.h"

enum ebt_bio_type {
	EBT_BIO_QUEUE = 1, /* from the insertion into the queue to the last issue to the device */
	EBT_BIO_SERVICE = 2, /* from the last issue to the completion */
	EBT_BIO_REQUEST = 3, /* all of it, where no span led to the request */
};

/* What a request is for; the numbers are the kernel's where these never changed. */
enum ebt_bio_operation {
	EBT_BIO_READ = 0,
	EBT_BIO_WRITE = 1,
	EBT_BIO_FLUSH = 2,
	EBT_BIO_DISCARD = 3,
	EBT_BIO_SECURE_ERASE = 5,
	EBT_BIO_WRITE_ZEROES = 9,
	EBT_BIO_DRIVER_IN = 34,
	EBT_BIO_DRIVER_OUT = 35,
	EBT_BIO_ZONE_APPEND = 256,
	EBT_BIO_ZONE_OPEN = 257,
	EBT_BIO_ZONE_CLOSE = 258,
	EBT_BIO_ZONE_FINISH = 259,
	EBT_BIO_ZONE_RESET = 260,
	EBT_BIO_ZONE_RESET_ALL = 261,
};

#define EBT_BIO_NO_SECTOR (~0ULL)

/* One request to a block device, or a part of its way. */
struct ebt_bio_request {
	struct ebt_span span;
	__u64 sector; /* of 512 bytes, from the start of the disk; EBT_BIO_NO_SECTOR without data */
	__u32 device; /* of the disk, its number as stat() has it; 0 = none */
	enum ebt_bio_operation operation;
	__u32 bytes;
	__u32 segments;
	__u32 requeues; /* times that the device gave it back */
	__s32 error; /* errno; 0 = none */
	__u32 pid; /* who caused it, in its innermost pid namespace */
	__u32 tid;
	char comm[16]; /* of thread `tid` */
	__u8 sync; /* somebody waits for it */
	__u8 meta; /* of the file system, not of a file */
	__u8 fua; /* not done before it is on the medium */
	__u8 readahead;
	__u8 deferred; /* it writes back what `tid` wrote into the page cache before */
	__u8 pad[3];
};

EBT_ASSERT(sizeof(struct ebt_bio_request) == 120, "record");

#endif
