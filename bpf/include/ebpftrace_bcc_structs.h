/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef EBPFTRACE_BCC_STRUCTS_H
#define EBPFTRACE_BCC_STRUCTS_H

/*
 * Included before anything else in programs that BCC compiles: structures which
 * the headers of this kernel need and BCC's copy of bpf.h lacks, as the kernel
 * defines them (ebpftrace/bcc/compat.py).
 */
#ifdef EBT_BCC_STRUCTS
EBT_BCC_STRUCTS
#endif

#endif
