/* SPDX-License-Identifier: Apache-2.0 */
/* What the cffi module adds to libbpf: its log as text, and ring buffers drained in batches. */
#ifndef EBPFTRACE_READER_H
#define EBPFTRACE_READER_H

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

/* Collect what libbpf says on this thread; take it with ebt_log_take(). */
void ebt_log_install(void);
/* Copy this thread's last lines into `text`, forget them; returns the bytes. */
size_t ebt_log_take(char *text, size_t size);

/*
 * Many ring buffers, one thread.  Records are copied into one batch, each as
 * { u32 ring, u32 size, bytes, padding to 8 }, so that the interpreter is
 * entered once for many.
 */
struct ebt_reader;

/* A batch is handed over at this size, though more may wait in the rings. */
#define EBT_BATCH_BYTES (256 * 1024)

struct ebt_batch {
	const void *data;
	size_t size;
	unsigned long long records; /* in this batch */
};

struct ebt_reader *ebt_reader_new(void);
/* The map must outlive its place in the reader.  Not while another thread is in ebt_reader_wait(). */
int ebt_reader_add(struct ebt_reader *reader, int map_fd, unsigned int ring);
/*
 * The same for a perf event array: opens an event of `pages` data pages (a power of two) for each
 * CPU and puts it into the map.  Not in the child of a fork: what it shares with its parent would end.
 */
int ebt_reader_add_perf(struct ebt_reader *reader, int map_fd, unsigned int ring, size_t pages);
/* Records that the kernel says it had no room for, so far; of a ring buffer always 0: it does not say. */
unsigned long long ebt_reader_lost(const struct ebt_reader *reader, unsigned int ring);
/* What is unread in it is not read; so wait for an empty batch first.  -ENOENT: it is not there. */
int ebt_reader_remove(struct ebt_reader *reader, unsigned int ring);
/*
 * Wait until records are there or ebt_reader_wake() was called, looking into
 * the rings each `interval_ms`; at most `timeout_ms`.  The batch is valid until
 * the next call.  0, or a negative errno.
 */
int ebt_reader_wait(struct ebt_reader *reader, int interval_ms, int timeout_ms,
		    struct ebt_batch *batch);
/* From any thread: let ebt_reader_wait() return now, after one more look. */
int ebt_reader_wake(struct ebt_reader *reader);
void ebt_reader_free(struct ebt_reader *reader);

/* The calling thread's name to the kernel: whom a trace says it was woken by. */
void ebt_name_thread(const char *name);

/* Close a link's file descriptor but leave what it links: for the child of a fork. */
void ebt_link_forget(struct bpf_link *link);

/* Does the kernel load this kind of program?  0, or a negative errno. */
int ebt_probe_tracing(const char *function, enum bpf_attach_type type);
/* May BTF tracepoints call this helper?  0, -EINVAL when not, or why that cannot be told. */
int ebt_probe_helper(int helper);
/* Run a raw tracepoint program once, here and now, with one argument; its return value, or a negative errno. */
int ebt_run_once(int prog_fd, unsigned long long argument);
int ebt_map_create(enum bpf_map_type type, const char *name, unsigned int key_size,
		   unsigned int value_size, unsigned int max_entries, unsigned int flags);
#endif
