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

struct list_head {
	struct list_head *next;
};

typedef __s64 ktime_t;

struct hrtimer {
	void *function;
};

struct rq {
	__u64 clock; /* ns; not of CLOCK_MONOTONIC */
	int cpu;
};

/* Present with CONFIG_CFS_BANDWIDTH. */
struct cfs_bandwidth {
	ktime_t period;
	__u64 quota;
	struct hrtimer period_timer;
	struct hrtimer slack_timer;
	struct list_head throttled_cfs_rq;
	int nr_throttled;
};

struct kernfs_node {
	__u64 id;
	const char *name;
	struct kernfs_node *parent;
};

/* `parent` became __parent in 6.15 (633488947ef6). */
struct kernfs_node___rcu {
	struct kernfs_node *__parent;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

struct task_group {
	struct cgroup_subsys_state css;
	struct cfs_rq **cfs_rq;
	struct task_group *parent;
	struct cfs_bandwidth cfs_bandwidth;
};

/*
 * What a CPU runs of one group.  All but `rq` and `tg` are present with
 * CONFIG_CFS_BANDWIDTH.  `throttled` was an int before it was a bit; reading it
 * as a bit field is right for both.
 */
struct cfs_rq {
	struct rq *rq;
	struct task_group *tg;
	int runtime_enabled;
	int throttle_count;
	unsigned int throttled : 1;
	__u64 throttled_clock; /* ns of rq->clock */
	struct list_head throttled_list;
};

/*
 * How long what is in a queue could not run, because its group or one above had
 * no quota: added up when it can again.  By the clock of the CPU from 6.6 on
 *, before that by one that leaves interrupts out, and that was
 * called by another name until 5.19.
 */
struct cfs_rq___self {
	__u64 throttled_clock_self_time;
};

struct cfs_rq___pelt {
	__u64 throttled_clock_pelt_time;
};

struct cfs_rq___task {
	__u64 throttled_clock_task_time;
};

/* From 6.3 on another CPU's queue is released by that CPU, some microseconds later (8ad075c2eb1f). */
struct cfs_rq___csd {
	struct list_head throttled_csd_list;
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
	__u64 start_time; /* CLOCK_MONOTONIC, ns */
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct mm_struct *mm;
	struct files_struct *files;
	struct signal_struct *signal;
	char comm[16];
};

/* The CPU that it is on, or was; moved back to thread_info in 5.16 (bcf9033e5449). */
struct thread_info {
	__u32 cpu;
};

struct task_struct___info {
	struct thread_info thread_info;
};

struct task_struct___cpu {
	unsigned int cpu;
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

/* Block layer: bio-trace. */
struct request_queue;

struct gendisk {
	int major;
	int first_minor;
	struct request_queue *queue;
};

struct block_device {
	struct gendisk *bd_disk;
};

struct request_queue {
	struct gendisk *disk; /* since 5.15 (d152c682f03c) */
};

struct address_space;

struct page {
	unsigned long flags;
	struct address_space *mapping;
	unsigned long compound_head;
};

/* The flags became a struct in 6.18. */
typedef struct {
	unsigned long f;
} memdesc_flags_t;

struct page___memdesc {
	memdesc_flags_t flags;
};

struct folio {
	struct address_space *mapping;
};

struct bio_vec {
	struct page *bv_page;
};

struct bvec_iter {
	unsigned int bi_idx;
};

struct bio {
	struct bio *bi_next;
	struct block_device *bi_bdev;
	unsigned int bi_opf;
	struct bvec_iter bi_iter;
	struct bio_vec *bi_io_vec;
};

/* A bio names its disk by bi_bdev since 5.12 (309dca309fc3). */
struct bio___disk {
	struct gendisk *bi_disk;
};

/* A request names its disk by itself until 5.17 (f3fa33acca9f). */
struct request___disk {
	struct gendisk *rq_disk;
};

struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
	__u64 __sector;
	struct bio *bio;
	unsigned short nr_phys_segments;
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
#define TASK_DEAD 0x0080

/* include/linux/sched/signal.h */
#define SIGNAL_GROUP_EXIT 0x00000004

/*
 * Block layer: bio-trace.  The numbers are the running kernel's, found by CO-RE.
 * Before 6.0 the first one is enum req_opf (ff07a02e9e8e).
 */
enum req_op {
	REQ_OP_ZONE_APPEND,
	REQ_OP_ZONE_OPEN,
	REQ_OP_ZONE_CLOSE,
	REQ_OP_ZONE_FINISH,
	REQ_OP_ZONE_RESET,
	REQ_OP_ZONE_RESET_ALL,
};

enum req_flag_bits {
	__REQ_SYNC,
	__REQ_META,
	__REQ_FUA,
	__REQ_PREFLUSH,
	__REQ_RAHEAD,
};

enum pageflags {
	PG_dirty,
};

#endif
