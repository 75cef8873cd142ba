/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* vasprintf */
#include "_reader.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

/* --- libbpf's log -------------------------------------------------------- */

#define LOG_SIZE 65536

/* libbpf calls back on the thread that called it, so a thread reads its own words only. */
static _Thread_local struct {
	size_t used;
	char text[LOG_SIZE];
} said;

/* Append, making room at the head: the last lines say why. */
static void log_append(const char *text, size_t length)
{
	size_t drop;

	if (length > LOG_SIZE) {
		text += length - LOG_SIZE;
		length = LOG_SIZE;
	}
	drop = said.used + length > LOG_SIZE ? said.used + length - LOG_SIZE : 0;
	memmove(said.text, said.text + drop, said.used - drop);
	memcpy(said.text + said.used - drop, text, length);
	said.used += length - drop;
}

static int log_line(enum libbpf_print_level level, const char *format, va_list args)
{
	char *text = NULL; /* a verifier's log is one message of up to megabytes */
	int length;

	if (level == LIBBPF_DEBUG)
		return 0;
	length = vasprintf(&text, format, args);
	if (length > 0)
		log_append(text, (size_t)length);
	if (length >= 0)
		free(text);
	return length;
}

void ebt_log_install(void)
{
	libbpf_set_print(log_line);
}

size_t ebt_log_take(char *text, size_t size)
{
	size_t skip = said.used > size ? said.used - size : 0;
	size_t length = said.used - skip;

	memcpy(text, said.text + skip, length);
	said.used = 0;
	return length;
}

/* --- the reader ---------------------------------------------------------- */

#define MAX_RINGS 64

/* A libbpf reader each: so one can go while the others stay, and a busy one cannot starve them. */
struct ring {
	struct ebt_reader *reader;
	struct ring_buffer *buffer; /* or: */
	struct perf_buffer *perf;
	unsigned int id;
	unsigned long long lost; /* by the kernel's count, which only perf buffers have */
};

struct ebt_reader {
	struct ring *ring[MAX_RINGS];
	unsigned int count;
	unsigned int next; /* whose turn it is to be looked into first */
	int wake_fd;
	bool full; /* the last batch was: there may be more */
	long long returned_ns; /* when it handed over the last batch */
	char *data;
	size_t used, capacity;
	unsigned long long records;
};

static int keep_record(void *context, void *data, size_t size)
{
	struct ring *ring = context;
	struct ebt_reader *reader = ring->reader;
	uint32_t head[2] = { ring->id, (uint32_t)size };
	size_t padded = (size + 7) & ~(size_t)7;

	if (reader->used + sizeof(head) + padded > reader->capacity) {
		size_t capacity = 2 * (reader->capacity + sizeof(head) + padded);
		char *grown = realloc(reader->data, capacity);

		if (!grown)
			return -ENOMEM;
		reader->data = grown;
		reader->capacity = capacity;
	}
	memcpy(reader->data + reader->used, head, sizeof(head));
	memcpy(reader->data + reader->used + sizeof(head), data, size);
	memset(reader->data + reader->used + sizeof(head) + size, 0, padded - size);
	reader->used += sizeof(head) + padded;
	reader->records++;
	/* libbpf has moved on past this record already; an error only ends the round */
	return reader->used >= EBT_BATCH_BYTES ? -ENOBUFS : 0;
}

struct ebt_reader *ebt_reader_new(void)
{
	struct ebt_reader *reader = calloc(1, sizeof(*reader));

	if (!reader)
		return NULL;
	reader->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	reader->capacity = 2 * EBT_BATCH_BYTES;
	reader->data = malloc(reader->capacity);
	if (reader->wake_fd < 0 || !reader->data) {
		ebt_reader_free(reader);
		return NULL;
	}
	return reader;
}

static void keep_sample(void *context, int cpu, void *data, uint32_t size)
{
	struct ring *ring = context;

	(void)cpu;
	if (keep_record(context, data, size) == -ENOMEM)
		ring->lost++;
}

static void keep_lost(void *context, int cpu, __u64 count)
{
	struct ring *ring = context;

	(void)cpu;
	ring->lost += count;
}

static int add(struct ebt_reader *reader, int map_fd, unsigned int id, size_t pages)
{
	struct ring *ring;

	if (reader->count == MAX_RINGS)
		return -E2BIG;
	ring = calloc(1, sizeof(*ring));
	if (!ring)
		return -ENOMEM;
	ring->reader = reader;
	ring->id = id;
	if (pages)
		ring->perf = perf_buffer__new(map_fd, pages, keep_sample, keep_lost, ring, NULL);
	else
		ring->buffer = ring_buffer__new(map_fd, keep_record, ring, NULL);
	if (!ring->buffer && !ring->perf) {
		int error = -errno;

		free(ring);
		return error;
	}
	reader->ring[reader->count++] = ring;
	return 0;
}

int ebt_reader_add(struct ebt_reader *reader, int map_fd, unsigned int id)
{
	return add(reader, map_fd, id, 0);
}

int ebt_reader_add_perf(struct ebt_reader *reader, int map_fd, unsigned int id, size_t pages)
{
	return pages ? add(reader, map_fd, id, pages) : -EINVAL;
}

unsigned long long ebt_reader_lost(const struct ebt_reader *reader, unsigned int id)
{
	for (unsigned int i = 0; i < reader->count; i++)
		if (reader->ring[i]->id == id)
			return reader->ring[i]->lost;
	return 0;
}

static void ring_free(struct ring *ring)
{
	ring_buffer__free(ring->buffer);
	perf_buffer__free(ring->perf);
	free(ring);
}

static int ring_fd(const struct ring *ring)
{
	return ring->perf ? perf_buffer__epoll_fd(ring->perf) : ring_buffer__epoll_fd(ring->buffer);
}

/* -ENOBUFS: the batch is full. */
static int ring_consume(const struct ring *ring)
{
	int result;

	if (!ring->perf)
		return ring_buffer__consume(ring->buffer);
	/* it cannot be stopped half way; what one pass finds is limited by the buffers' size */
	result = perf_buffer__consume(ring->perf);
	return result >= 0 && ring->reader->used >= EBT_BATCH_BYTES ? -ENOBUFS : result;
}

int ebt_reader_remove(struct ebt_reader *reader, unsigned int id)
{
	for (unsigned int i = 0; i < reader->count; i++) {
		if (reader->ring[i]->id != id)
			continue;
		ring_free(reader->ring[i]);
		reader->ring[i] = reader->ring[--reader->count];
		reader->next = 0;
		return 0;
	}
	return -ENOENT;
}

#define NSEC_PER_MSEC 1000000LL
/*
 * Programs that are not made with our header wake the reader whenever it has
 * caught up, so for each record when they come one by one.  A pause between
 * batches lets them gather; while there are unread records nobody is woken.
 */
#define MIN_PAUSE_NS NSEC_PER_MSEC

static long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 * NSEC_PER_MSEC + ts.tv_nsec;
}

static void sleep_ns(long long ns)
{
	struct timespec pause = { .tv_nsec = ns };

	if (ns > 0)
		nanosleep(&pause, NULL);
}

/* Empty the rings into the batch, in turns: the one that filled it is the last to be looked into next time. */
static int consume(struct ebt_reader *reader)
{
	unsigned int count = reader->count, first = reader->next;

	reader->full = false;
	for (unsigned int i = 0; i < count; i++) {
		unsigned int turn = (first + i) % count;
		int result = ring_consume(reader->ring[turn]);

		if (result == -ENOBUFS) {
			reader->next = (turn + 1) % count;
			reader->full = true;
			return 0;
		}
		if (result < 0)
			return result;
	}
	return 0;
}

int ebt_reader_wait(struct ebt_reader *reader, int interval_ms, int timeout_ms,
		    struct ebt_batch *batch)
{
	struct pollfd fds[1 + MAX_RINGS] = { { .fd = reader->wake_fd, .events = POLLIN } };
	long long deadline = now_ns() + timeout_ms * NSEC_PER_MSEC;
	int error, woken = 0;

	/* the map's own descriptor would be ready for any unread record, this one is when a record asked for it */
	for (unsigned int i = 0; i < reader->count; i++)
		fds[1 + i] = (struct pollfd){ .fd = ring_fd(reader->ring[i]), .events = POLLIN };
	reader->used = 0;
	reader->records = 0;
	/* a batch that was full left records behind; else let some gather */
	error = reader->full || timeout_ms <= 0 ? consume(reader) : 0;
	while (!error && !reader->used && !woken) {
		long long left = (deadline - now_ns()) / NSEC_PER_MSEC;

		if (left <= 0)
			break;
		int patience = left < interval_ms ? (int)left : interval_ms;

		if (poll(fds, 1 + reader->count, patience) < 0 && errno != EINTR)
			return -errno;
		if (fds[0].revents) {
			uint64_t count;

			woken = 1;
			if (read(reader->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
				return -errno;
		} else {
			sleep_ns(reader->returned_ns + MIN_PAUSE_NS - now_ns());
		}
		error = consume(reader);
	}
	reader->returned_ns = now_ns();
	batch->data = reader->data;
	batch->size = reader->used;
	batch->records = reader->records;
	return error;
}

int ebt_reader_wake(struct ebt_reader *reader)
{
	uint64_t one = 1;

	return write(reader->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN ? -errno : 0;
}

void ebt_reader_free(struct ebt_reader *reader)
{
	if (!reader)
		return;
	while (reader->count)
		ring_free(reader->ring[--reader->count]);
	if (reader->wake_fd >= 0)
		close(reader->wake_fd);
	free(reader->data);
	free(reader);
}

void ebt_name_thread(const char *name)
{
	prctl(PR_SET_NAME, name);
}

/* --- small things that libbpf leaves to its user ------------------------- */

void ebt_link_forget(struct bpf_link *link)
{
	int fd = bpf_link__fd(link);

	bpf_link__disconnect(link);
	bpf_link__destroy(link);
	if (fd >= 0)
		close(fd);
}

int ebt_probe_tracing(const char *function, enum bpf_attach_type type)
{
	const struct bpf_insn exit_0[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = type);
	int id = libbpf_find_vmlinux_btf_id(function, type);
	int fd, error;

	if (id < 0)
		return id;
	options.attach_btf_id = (unsigned int)id;
	fd = bpf_prog_load(BPF_PROG_TYPE_TRACING, "ebt_probe", "GPL", exit_0, 2, &options);
	if (fd < 0)
		return -errno;
	error = bpf_raw_tracepoint_open(NULL, fd);
	if (error >= 0) {
		close(error);
		error = 0;
	} else {
		error = -errno;
	}
	close(fd);
	return error;
}

int ebt_probe_helper(int helper)
{
	/* What it is called with is wrong for any helper: the verifier looks at that when it knows the helper, EACCES. */
	const struct bpf_insn call[] = {
		{ .code = BPF_JMP | BPF_CALL, .imm = helper },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = BPF_TRACE_RAW_TP);
	int id = libbpf_find_vmlinux_btf_id("sched_switch", BPF_TRACE_RAW_TP);
	int fd;

	if (id < 0)
		return id;
	options.attach_btf_id = (unsigned int)id;
	fd = bpf_prog_load(BPF_PROG_TYPE_TRACING, "ebt_probe", "GPL", call, 3, &options);
	if (fd >= 0)
		close(fd);
	return fd >= 0 || errno == EACCES ? 0 : -errno;
}

int ebt_run_once(int prog_fd, unsigned long long argument)
{
	LIBBPF_OPTS(bpf_test_run_opts, options, .ctx_in = &argument,
		    .ctx_size_in = sizeof(argument));

	if (bpf_prog_test_run_opts(prog_fd, &options))
		return -errno;
	return (int)options.retval;
}

int ebt_map_create(enum bpf_map_type type, const char *name, unsigned int key_size,
		   unsigned int value_size, unsigned int max_entries, unsigned int flags)
{
	LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = flags);
	int fd = bpf_map_create(type, name, key_size, value_size, max_entries, &options);

	return fd < 0 ? -errno : fd;
}
