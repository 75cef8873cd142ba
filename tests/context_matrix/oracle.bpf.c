// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What BPF sees of the current context at a marked system call: the n-th check
 * of a process is its getpgid(MARK + n).
 *
 * The context is found by the very functions that the shipped programs use.
 */
#include "ebpftrace.bpf.h"

#include <asm/unistd.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MARK 0x5a000000
#define CHECKS (1U << 16)

/* Set by the loader: the process that checks. */
const volatile __u32 filter_tgid = 0;

struct sighting {
	__u8 trace_id[16];
	__u8 span_id[8];
	__u32 made; /* how often; once, or marks are mixed up */
	__u8 slot; /* the thread has one */
	__u8 valid; /* with a context in it */
	__u8 seen; /* which the programs would take */
	__u8 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CHECKS);
	__type(key, __u32);
	__type(value, struct sighting);
} sightings SEC(".maps");

/* Hook: every system call of the machine, when it begins; all but the marked ones leave at once. */
SEC("tp_btf/sys_enter")
int BPF_PROG(sys_enter, struct pt_regs *regs, long id)
{
	struct sighting *sighting;
	struct ebt_thread thread;
	__u64 argument;
	__u32 number;

	if (id != __NR_getpgid || bpf_get_current_pid_tgid() >> 32 != filter_tgid)
		return 0;
#if defined(__TARGET_ARCH_x86)
	argument = regs->di;
#else
	argument = regs->orig_x0;
#endif
	number = argument - MARK;
	sighting = bpf_map_lookup_elem(&sightings, &number);
	if (!sighting)
		return 0;
	sighting->made++;
	if (!ebt_thread_find(bpf_get_current_task_btf(), &thread))
		return 0;
	sighting->slot = 1;
	sighting->valid = thread.slot->valid;
	if (!ebt_enabled(thread.slot))
		return 0;
	sighting->seen = 1;
	__builtin_memcpy(sighting->trace_id, thread.slot->trace_id, sizeof(sighting->trace_id));
	__builtin_memcpy(sighting->span_id, thread.slot->span_id, sizeof(sighting->span_id));
	return 0;
}
