// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What certain commands open, in BCC's dialect: a table of our header, a knob that is a number, one that is a list. */
#include <ebpftrace_bcc.h>

struct name_t {
	char text[16];
};

struct open_t {
	struct ebt_span span;
	u32 pid;
	u32 marker;
	char comm[16];
	char path[64];
};
EBT_RECORD(open_t);
BPF_RINGBUF_OUTPUT(opens, 16);
BPF_HASH(commands, struct name_t, u8, 16);

TRACEPOINT_PROBE(syscalls, sys_enter_openat)
{
	struct open_t record = {};
	struct name_t name = {};

	bpf_get_current_comm(&name.text, sizeof(name.text));
	if (!commands.lookup(&name))
		return 0;
	ebt_span_root(&record.span, 0, sizeof(record));
	record.pid = bpf_get_current_pid_tgid() >> 32;
	record.marker = KNOB_marker;
	bpf_get_current_comm(&record.comm, sizeof(record.comm));
	bpf_probe_read_user_str(&record.path, sizeof(record.path), args->filename);
	if (opens.ringbuf_output(&record, sizeof(record), 0))
		ebt_drops.increment(0);
	return 0;
}
