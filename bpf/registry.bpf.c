// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What the agent has to ask the kernel about applications that register with
 * it: which process is at the other end of a socket, has a registered process
 * executed another binary, and which tables does the machine still hold.
 */
#include "ebpftrace.bpf.h"
#include "registry.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

EBT_RECORD(ebt_registry_exec);

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

enum { PIDTYPE_TGID = 1 };

struct pid___tasks {
	struct hlist_head tasks[4];
};

/* Structures of one member: what kuid_t, kgid_t and kernel_cap_t are, whatever that member is called. */
struct cred_id {
	__u32 number;
};

struct cred_caps {
	__u64 bits;
};

struct cred {
	struct cred_id euid;
	struct cred_id egid;
	struct cred_caps cap_permitted;
};

struct task_struct___peer {
	struct hlist_node pid_links[4];
	__u64 start_boottime;
	__u64 self_exec_id; /* 64 bits since 5.7 (d1e7fd6462ca); no program runs at once before 5.10 */
	const struct cred *cred;
};

struct file___private {
	void *private_data;
};

struct socket {
	struct sock *sk;
};

struct sock {
	struct pid *sk_peer_pid;
	const struct cred *sk_peer_cred;
};

struct seq_file;

struct bpf_map {
	__u32 id;
	enum bpf_map_type map_type;
	__u32 value_size;
	__u32 max_entries;
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__bpf_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
};

#pragma clang attribute pop

/* The answer of identify_peer(). */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ebt_registry_peer);
} peers SEC(".maps");

static __always_inline struct file *file_of(__u32 fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *fdt = BPF_CORE_READ(task, files, fdt);
	struct file **fds, *file = NULL;

	if (!fdt || fd >= BPF_CORE_READ(fdt, max_fds))
		return NULL;
	fds = BPF_CORE_READ(fdt, fd);
	bpf_probe_read_kernel(&file, sizeof(file), fds + fd);
	return file;
}

/* The first thread of the process; NULL when it has ended. */
static __always_inline struct task_struct___peer *leader(struct pid *pid)
{
	struct pid___tasks *of = (void *)pid;
	struct hlist_node *first = NULL;

	bpf_probe_read_kernel(&first, sizeof(first),
			      (void *)of + bpf_core_field_offset(of->tasks) +
				      PIDTYPE_TGID * bpf_core_type_size(struct hlist_head));
	if (!first)
		return NULL;
	return (void *)first - bpf_core_field_offset(struct task_struct___peer, pid_links) -
	       PIDTYPE_TGID * bpf_core_type_size(struct hlist_node);
}

struct privileges {
	__u64 caps;
	__u32 uid, gid;
};

static __always_inline void read_privileges(struct privileges *found, const struct cred *cred)
{
	const void *at = cred;

	bpf_probe_read_kernel(&found->caps, sizeof(found->caps),
			      at + bpf_core_field_offset(struct cred, cap_permitted));
	bpf_probe_read_kernel(&found->uid, sizeof(found->uid),
			      at + bpf_core_field_offset(struct cred, euid));
	bpf_probe_read_kernel(&found->gid, sizeof(found->gid),
			      at + bpf_core_field_offset(struct cred, egid));
}

static __always_inline bool differ(const struct cred *one, const struct cred *other)
{
	struct privileges first = {}, second = {};

	read_privileges(&first, one);
	read_privileges(&second, other);
	return first.uid != second.uid || first.gid != second.gid || first.caps != second.caps;
}

/*
 * Never attached: run by BPF_PROG_TEST_RUN in the agent's context, with a socket
 * of the agent's.  SO_PEERCRED has the peer's id in the agent's pid namespace;
 * `processes` wants it as the kernel has it.  And the socket refers to the
 * process itself, so no other one that got its id since is taken for it.  It also
 * says what of it can change: a process that connects may leave the socket to a
 * child and execute a binary of another user.
 */
SEC("raw_tp")
int identify_peer(struct bpf_raw_tracepoint_args *ctx)
{
	struct ebt_registry_peer *peer;
	struct file *file = file_of((__u32)ctx->args[0]);
	struct task_struct___peer *task;
	struct socket *socket;
	struct pid *pid;
	__u32 zero = 0;
	int tgid = 0;

	peer = bpf_map_lookup_elem(&peers, &zero);
	if (!peer)
		return 0;
	__builtin_memset(peer, 0, sizeof(*peer));
	if (!file)
		return 0;
	socket = BPF_CORE_READ((struct file___private *)file, private_data);
	pid = socket ? BPF_CORE_READ(socket, sk, sk_peer_pid) : NULL;
	task = pid ? leader(pid) : NULL;
	if (!task)
		return 0;
	bpf_probe_read_kernel(&tgid, sizeof(tgid),
			      (void *)pid + bpf_core_field_offset(struct pid, numbers) +
				      bpf_core_field_offset(struct upid, nr));
	peer->tgid = (__u32)tgid;
	peer->started_ns = BPF_CORE_READ(task, start_boottime);
	peer->exec_id = BPF_CORE_READ(task, self_exec_id);
	peer->changed = differ(BPF_CORE_READ(task, cred), BPF_CORE_READ(socket, sk, sk_peer_cred));
	return 0;
}

/*
 * Fires when the new binary is in place: what the old one published is not the new one's.
 * Its bit goes at once, the table when the agent comes to it.  Processes share bits and, as
 * there are no atomic bit operations before 5.12, words: the agent writes the word anew.
 */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(registered_exec, struct task_struct *task)
{
	struct ebt_registry_exec *record;
	__u32 tgid = task->tgid;
	__u32 word = (tgid / 64) & (EBT_PUBLISHER_WORDS - 1);
	__u64 *bits;

	if (!bpf_map_lookup_elem(&processes, &tgid))
		return 0;
	bits = bpf_map_lookup_elem(&publishers, &word);
	if (bits)
		*bits &= ~(1ULL << (tgid & 63));
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record) {
		ebt_count_drop(EBT_DROP_RING_FULL);
		return 0;
	}
	record->ts_ns = bpf_ktime_get_ns();
	record->tgid = tgid;
	record->pad = 0;
	bpf_ringbuf_submit(record, BPF_RB_FORCE_WAKEUP);
	return 0;
}

/* Read like a file: the ids of all maps that may be slots or lines of tables, whoever holds them. */
SEC("iter/bpf_map")
int tables_held(struct bpf_iter__bpf_map *ctx)
{
	struct bpf_map *map = ctx->map;
	__u32 id;

	if (!map || map->map_type != BPF_MAP_TYPE_ARRAY || map->max_entries != EBT_TABLE_SLOTS ||
	    (map->value_size != sizeof(struct ebt_slot) &&
	     map->value_size != sizeof(struct ebt_line)))
		return 0;
	id = map->id;
	bpf_seq_write(ctx->meta->seq, &id, sizeof(id));
	return 0;
}
