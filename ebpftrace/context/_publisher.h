/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the publisher share: _table.c has the context table and the
 * calling thread's place in it, _breakdown.c reads the kernel's account of the
 * thread, _publisher.c publishes and is the Python module.
 *
 * All of it runs with the GIL held, but for the thread-exit destructor.
 */
#ifndef EBPFTRACE_PUBLISHER_H
#define EBPFTRACE_PUBLISHER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "ebpftrace_abi.h"

#pragma GCC visibility push(hidden)

/*
 * The process's context table.  `epoch` tells tables apart; 0 is none.  A child of
 * whatever fork has no table: `*here` is wiped there, also when the fork was a bare
 * system call, of which nobody is told.
 */
struct table {
	struct ebt_slot *slots;
	const struct ebt_line *lines;
	unsigned char *here;
	unsigned int epoch;
	long long
		clock_offset; /* ns that CLOCK_MONOTONIC is ahead of the kernel's (time namespace) */
};

extern struct table table;

struct accounts;

struct thread {
	struct ebt_slot *slot;
	unsigned int epoch; /* of the table that `slot` is in */
	unsigned int full_epoch; /* of the table that had no room for this thread... */
	unsigned int full_releases; /* ...when so many slots had been given back */
	struct accounts *open; /* of its open spans */
};

/* initial-exec: an access is one load; the few bytes fit what the loader keeps for late libraries */
extern _Thread_local struct thread self __attribute__((tls_model("initial-exec")));

struct state {
	PyObject *span_key; /* opentelemetry.trace.propagation._SPAN_KEY */
	PyObject *mask_key; /* context key of (mask below, mask, span id) */
	PyObject *context_attr; /* "_context" */
	PyObject *get_span_context;
	PyObject *attach, *detach, *get_current;
	PyObject *attributes_attr, *start_time_attr, *end_time_attr; /* of a span */
	PyObject *dict_attr, *maxlen_attr; /* of its attributes */
	PyObject *time_keys[EBT_CAUSES];
	PyObject *lost_key;
	PyObject *on_fork; /* called once, at the first attach in a forked child */
	unsigned int default_mask; /* for sampled contexts that do not say */
	bool forked;
};

extern struct state state;

/* Written with the GIL held. */
struct counters {
	unsigned long long no_slot; /* threads that found the table full */
	unsigned long long errors; /* contexts that could not be published */
};

extern struct counters counters;

unsigned long long clock_ns(clockid_t clock);
/* As bpf_ktime_get_ns() counts. */
unsigned long long now_ns(void);

struct ebt_slot *slot_claim(void);

/* The calling thread's slot; NULL when there is no table, or no room in it. */
static inline struct ebt_slot *slot_mine(void)
{
	if (self.epoch == table.epoch && self.slot && *table.here)
		return self.slot;
	return slot_claim();
}

/* What _table.c and _breakdown.c give to the module. */
int table_init(void);
PyObject *table_arm(PyObject *module, PyObject *args);
PyObject *table_disarm(PyObject *module, PyObject *ignored);
PyObject *table_armed(PyObject *module, PyObject *ignored);
PyObject *table_slot_bytes(PyObject *module, PyObject *ignored);

/* What became of a span's measurement; breakdown.processor counts them under these names. */
enum { KERNEL_SPAN, MEASURED, ANOTHER_THREAD, SHARED_THREAD, NO_ROOM };

PyObject *breakdown_begin(PyObject *module, PyObject *span);
PyObject *breakdown_end(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#pragma GCC visibility pop

#endif
