/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Why a thread goes off CPU, told from what the scheduler's tracepoint can see:
 * its state, the system call it is in, the file that call waits for, and
 * whether its CPU bandwidth is used up.
 */
#ifndef EBPFTRACE_WAIT_CAUSE_BPF_H
#define EBPFTRACE_WAIT_CAUSE_BPF_H

#include <asm/unistd.h>
#include <linux/stat.h>

#include "ebpftrace.bpf.h"

/* Beyond the causes: the answer depends on the call's first argument. */
#define WAIT_BY_FD 64 /* a file descriptor */
#define WAIT_BY_POLL 65 /* an array of struct pollfd */
#define WAIT_BY_SELECT 66 /* the number of file descriptors */

#define SYSCALLS 512

/* clang-format off */
static const __u8 syscall_waits[SYSCALLS] = {
	[__NR_read] = WAIT_BY_FD, [__NR_write] = WAIT_BY_FD,
	[__NR_readv] = WAIT_BY_FD, [__NR_writev] = WAIT_BY_FD,
	[__NR_sendfile] = WAIT_BY_FD, [__NR_splice] = WAIT_BY_FD, [__NR_tee] = WAIT_BY_FD,
	[__NR_ioctl] = WAIT_BY_FD, [__NR_close] = WAIT_BY_FD,

	[__NR_ppoll] = WAIT_BY_POLL, [__NR_pselect6] = WAIT_BY_SELECT,
	[__NR_epoll_pwait] = EBT_NETWORK, [441 /* epoll_pwait2 */] = EBT_NETWORK,
	[__NR_accept] = EBT_NETWORK, [__NR_accept4] = EBT_NETWORK, [__NR_connect] = EBT_NETWORK,
	[__NR_sendto] = EBT_NETWORK, [__NR_recvfrom] = EBT_NETWORK,
	[__NR_sendmsg] = EBT_NETWORK, [__NR_recvmsg] = EBT_NETWORK,
	[__NR_sendmmsg] = EBT_NETWORK, [__NR_recvmmsg] = EBT_NETWORK,
	[__NR_shutdown] = EBT_NETWORK,

	[__NR_futex] = EBT_LOCK, [449 /* futex_waitv */] = EBT_LOCK, [455 /* futex_wait */] = EBT_LOCK,
	[__NR_flock] = EBT_LOCK, [__NR_fcntl] = EBT_LOCK, [__NR_semop] = EBT_LOCK, [__NR_semtimedop] = EBT_LOCK,
	/* the address space's own lock */
	[__NR_mmap] = EBT_LOCK, [__NR_munmap] = EBT_LOCK, [__NR_mprotect] = EBT_LOCK,
	[__NR_mremap] = EBT_LOCK, [__NR_brk] = EBT_LOCK, [__NR_madvise] = EBT_LOCK,

	[__NR_nanosleep] = EBT_SLEEP, [__NR_clock_nanosleep] = EBT_SLEEP,

	[__NR_pread64] = EBT_DISK, [__NR_pwrite64] = EBT_DISK, [__NR_preadv] = EBT_DISK, [__NR_pwritev] = EBT_DISK,
	[__NR_preadv2] = EBT_DISK, [__NR_pwritev2] = EBT_DISK, [__NR_copy_file_range] = EBT_DISK,
	[__NR_fsync] = EBT_DISK, [__NR_fdatasync] = EBT_DISK, [__NR_sync] = EBT_DISK, [__NR_syncfs] = EBT_DISK,
	[__NR_msync] = EBT_DISK, [__NR_sync_file_range] = EBT_DISK, [__NR_fallocate] = EBT_DISK,
	[__NR_truncate] = EBT_DISK, [__NR_ftruncate] = EBT_DISK, [__NR_readahead] = EBT_DISK,
	[__NR_fadvise64] = EBT_DISK, [__NR_io_getevents] = EBT_DISK,
	[__NR_openat] = EBT_DISK, [__NR_openat2] = EBT_DISK, [__NR_statx] = EBT_DISK, [__NR_fstat] = EBT_DISK,
	[__NR_newfstatat] = EBT_DISK, [__NR_getdents64] = EBT_DISK, [__NR_unlinkat] = EBT_DISK,
	[__NR_mkdirat] = EBT_DISK, [__NR_renameat2] = EBT_DISK, [__NR_linkat] = EBT_DISK,
	[__NR_symlinkat] = EBT_DISK, [__NR_readlinkat] = EBT_DISK, [__NR_faccessat] = EBT_DISK,
#ifdef __TARGET_ARCH_x86 /* calls that newer architectures do without */
	[__NR_poll] = WAIT_BY_POLL, [__NR_select] = WAIT_BY_SELECT, [__NR_epoll_wait] = EBT_NETWORK,
	[__NR_open] = EBT_DISK, [__NR_stat] = EBT_DISK, [__NR_lstat] = EBT_DISK, [__NR_unlink] = EBT_DISK,
	[__NR_mkdir] = EBT_DISK, [__NR_rmdir] = EBT_DISK, [__NR_rename] = EBT_DISK, [__NR_link] = EBT_DISK,
	[__NR_readlink] = EBT_DISK, [__NR_access] = EBT_DISK, [__NR_getdents] = EBT_DISK,
#endif
};
/* clang-format on */

/* Called for a task that leaves the CPU though it could run on: is its quota used up? */
static __always_inline bool task_throttled(struct task_struct *task)
{
	struct task_struct___throttled *marked = (void *)task;
	struct cfs_rq *cfs_rq = NULL;

	if (bpf_core_field_exists(marked->throttled))
		return BPF_CORE_READ(marked, throttled);
	if (!bpf_core_field_exists(cfs_rq->throttle_count))
		return false; /* no bandwidth control in this kernel */
	cfs_rq = BPF_CORE_READ(task, se.cfs_rq);
	return cfs_rq && BPF_CORE_READ(cfs_rq, throttle_count) > 0;
}

/*
 * How long a task's queue has been throttled in its life, not counting a period
 * that lasts; 0 where each task is throttled by itself, or this is not known.
 */
static __always_inline __u64 queue_throttled_ns(struct cfs_rq *queue)
{
	struct task_struct___throttled *marked = NULL;
	struct cfs_rq___self *self = (void *)queue;
	struct cfs_rq___pelt *pelt = (void *)queue;
	struct cfs_rq___task *task = (void *)queue;

	if (!queue || bpf_core_field_exists(marked->throttled))
		return 0;
	if (bpf_core_field_exists(self->throttled_clock_self_time))
		return BPF_CORE_READ(self, throttled_clock_self_time);
	if (bpf_core_field_exists(pelt->throttled_clock_pelt_time))
		return BPF_CORE_READ(pelt, throttled_clock_pelt_time);
	if (bpf_core_field_exists(task->throttled_clock_task_time))
		return BPF_CORE_READ(task, throttled_clock_task_time);
	return 0;
}

static __always_inline long task_state(struct task_struct *task)
{
	struct task_struct___state *now = (void *)task;
	struct task_struct___old_state *old = (void *)task;

	if (bpf_core_field_exists(now->__state))
		return BPF_CORE_READ(now, __state);
	return BPF_CORE_READ(old, state);
}

struct syscall {
	int nr; /* -1: none, the thread was in user mode */
	__u64 args[2];
};

static __always_inline void task_syscall(struct task_struct *task, struct syscall *call)
{
	struct pt_regs *regs;

	call->nr = -1;
	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs))
		return;
	regs = (struct pt_regs *)bpf_task_pt_regs(task);
#if defined(__TARGET_ARCH_x86)
	call->nr = regs->orig_ax;
	call->args[0] = regs->di;
	call->args[1] = regs->si;
#else
	call->nr = regs->syscallno;
	call->args[0] = regs->orig_x0;
	call->args[1] = regs->regs[1];
#endif
}

static __always_inline enum ebt_cause file_cause(struct task_struct *task, __u32 fd)
{
	struct fdtable *fdt = BPF_CORE_READ(task, files, fdt);
	struct file **fds, *file = NULL;
	unsigned short mode;

	if (!fdt || fd >= BPF_CORE_READ(fdt, max_fds))
		return EBT_OTHER;
	fds = BPF_CORE_READ(fdt, fd);
	bpf_probe_read_kernel(&file, sizeof(file), fds + fd);
	if (!file)
		return EBT_OTHER;
	mode = BPF_CORE_READ(file, f_inode, i_mode);
	if (S_ISSOCK(mode))
		return EBT_NETWORK;
	if (S_ISREG(mode) || S_ISDIR(mode) || S_ISBLK(mode))
		return EBT_DISK;
	return EBT_OTHER; /* a pipe, a terminal, an event fd */
}

/* poll(2) waits for what its first descriptor is: nearly always the only one. */
static __always_inline enum ebt_cause poll_cause(struct task_struct *task,
						 const struct syscall *call)
{
	__s32 fd;

	if (!call->args[1])
		return EBT_SLEEP;
	if (bpf_probe_read_user(&fd, sizeof(fd), (void *)call->args[0]))
		return EBT_OTHER;
	return file_cause(task, fd);
}

/* Why `task`, which is current and about to be switched out, stops running. */
static __always_inline enum ebt_cause wait_cause(struct task_struct *task, long state,
						 const struct syscall *call)
{
	__u8 wait;

	if (state == TASK_RUNNING)
		return task_throttled(task) ? EBT_THROTTLED : EBT_RUN_QUEUE;
	if (call->nr < 0)
		return EBT_PAGE_FAULT; /* blocked without a system call */
	if (BPF_CORE_READ_BITFIELD(task, in_iowait))
		return EBT_DISK;
	wait = syscall_waits[call->nr & (SYSCALLS - 1)];
	if (wait == WAIT_BY_FD)
		return file_cause(task, call->args[0]);
	if (wait == WAIT_BY_POLL)
		return poll_cause(task, call);
	if (wait == WAIT_BY_SELECT)
		return call->args[0] ? EBT_NETWORK : EBT_SLEEP;
	return wait ? wait : EBT_OTHER;
}

/*
 * Can a task in system call `nr` have ended a wait of this cause?  An interrupt
 * also runs "in" some task, a bystander that must not be blamed: timers and
 * disks always end waits like that, and a task in user mode never ends one.
 */
static __always_inline bool can_wake(__u8 cause, int nr)
{
	__u8 wait;

	if (nr < 0 || cause == EBT_DISK || cause == EBT_SLEEP || cause == EBT_PAGE_FAULT)
		return false;
	if (nr == __NR_exit || nr == __NR_exit_group)
		return true;
	wait = syscall_waits[nr & (SYSCALLS - 1)];
	if (cause == EBT_LOCK)
		return wait == EBT_LOCK;
	if (cause == EBT_NETWORK)
		return wait == EBT_NETWORK || wait == WAIT_BY_FD;
	return true;
}

#endif
