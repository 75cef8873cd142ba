/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The path of a cgroup in its hierarchy.  User space can look one up by its id,
 * but not when the cgroup is gone by then, nor surely with cgroup version 1,
 * where each hierarchy has the same ids.
 */
#ifndef EBPFTRACE_CGROUP_BPF_H
#define EBPFTRACE_CGROUP_BPF_H

#include "ebpftrace.bpf.h"

#define EBT_CGROUP_LEVELS 8 /* of a path; those above are left out */
#define EBT_CGROUP_NAME 256

struct ebt_cgroup_path {
	char text[EBT_CGROUP_PATH +
		  EBT_CGROUP_NAME]; /* room for a name that begins at the path's last byte */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ebt_cgroup_path);
} cgroup_paths SEC(".maps");

/*
 * Where the directory above is found.  Asked once, outside of any loop: clang
 * would move the offset that this kernel does not have in front of the loop,
 * and so of the question whether it has it.
 */
static __always_inline __u32 ebt_parent_offset(void)
{
	struct kernfs_node___rcu *now = NULL;
	struct kernfs_node *old = NULL;
	__u32 offset;

	if (bpf_core_field_exists(now->__parent)) {
		offset = bpf_core_field_offset(now->__parent);
		barrier_var(offset);
	} else {
		offset = bpf_core_field_offset(old->parent);
		barrier_var(offset);
	}
	return offset;
}

/* Write a cgroup's path into `path`, which has EBT_CGROUP_PATH zeroed bytes; a longer one is cut off. */
static __always_inline void ebt_cgroup_path(struct kernfs_node *node, char *path)
{
	struct kernfs_node *nodes[EBT_CGROUP_LEVELS] = {}, *above;
	struct ebt_cgroup_path *scratch;
	__u32 zero = 0, end = 0, offset = ebt_parent_offset();
	long size;

	scratch = bpf_map_lookup_elem(&cgroup_paths, &zero);
	if (!scratch)
		return;
	for (int level = 0; level < EBT_CGROUP_LEVELS && node; level++) {
		above = NULL;
		bpf_probe_read_kernel(&above, sizeof(above), (void *)node + offset);
		if (!above)
			break; /* the root has no name */
		nodes[level] = node;
		node = above;
	}
	scratch->text[0] = '/';
	scratch->text[1] = 0;
#pragma unroll
	for (int level = EBT_CGROUP_LEVELS - 1; level >= 0; level--) {
		if (!nodes[level] || end >= EBT_CGROUP_PATH)
			continue;
		scratch->text[end] = '/';
		size = bpf_probe_read_kernel_str(scratch->text + end + 1, EBT_CGROUP_NAME - 1,
						 BPF_CORE_READ(nodes[level], name));
		if (size > 0)
			end += size;
	}
	bpf_probe_read_kernel_str(path, EBT_CGROUP_PATH, scratch->text);
}

#endif
