/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel types that the programs read, declared by hand with only the
 * members they read; CO-RE finds the offsets in the running kernel's BTF.
 * Names and kinds must be the kernel's, order and size need not be.
 */
#ifndef EBPFTRACE_KERNEL_BPF_H
#define EBPFTRACE_KERNEL_BPF_H

#include <linux/types.h>
#include <stdbool.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct upid {
	int nr;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

/* Present with CONFIG_CFS_BANDWIDTH. */
struct cfs_rq {
	int throttle_count;
};

struct sched_entity {
	struct cfs_rq *cfs_rq;
	__u64 sum_exec_runtime;
};

struct inode {
	unsigned short i_mode;
};

struct file {
	struct inode *f_inode;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

typedef struct {
	int counter;
} atomic_t;

struct signal_struct {
	atomic_t live;
	int group_exit_code;
	unsigned int flags;
};

struct mm_struct {
	unsigned long arg_start;
	unsigned long arg_end;
};

struct task_struct {
	int pid;
	int tgid;
	int exit_code;
	unsigned int in_iowait : 1;
	struct sched_entity se;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct mm_struct *mm;
	struct files_struct *files;
	struct signal_struct *signal;
	char comm[16];
};

/* task->state became task->__state in 5.14 (2f064a59a11f). */
struct task_struct___state {
	unsigned int __state;
};

struct task_struct___old_state {
	long state;
};

/*
 * From 6.18 on a throttled task is taken off the queue by itself, on its way
 * back to user space (e1fad12dcb66), and is marked.
 */
struct task_struct___throttled {
	bool throttled;
};

struct linux_binprm {
	const char *filename;
	const char *interp;
};

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long di;
	unsigned long si;
	unsigned long orig_ax;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 regs[31];
	__u64 orig_x0;
	__s32 syscallno;
};
#else
#error "the programs know the system call registers of x86-64 and aarch64 only"
#endif

#pragma clang attribute pop

/* include/linux/sched.h; user space sees them in /proc/PID/stat. */
#define TASK_RUNNING 0x0000
#define TASK_INTERRUPTIBLE 0x0001
#define TASK_UNINTERRUPTIBLE 0x0002

/* include/linux/sched/signal.h */
#define SIGNAL_GROUP_EXIT 0x00000004

#endif
