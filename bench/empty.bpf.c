// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Programs that do nothing: what the kernel's own measuring of run times counts for one. */
#include "ebpftrace.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tp_btf/sched_switch")
int empty(void *ctx)
{
	return 0;
}
