/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the publisher share: _table.c has the context table and the
 * calling thread's place in it, _breakdown.c reads the kernel's account of the
 * thread, _switches.c learns of contexts that take over without OpenTelemetry
 * (_methods.c and _imports.c put it there), _otel_ctx.c leads other readers to
 * the slots, _publisher.c publishes and is the Python module.
 *
 * All of it runs with the GIL held, but for the thread-exit destructor.
 */
#ifndef EBPFTRACE_PUBLISHER_H
#define EBPFTRACE_PUBLISHER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
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
	const PyInterpreterState *interp; /* whose session mapped it */
	unsigned int epoch;
	long long
		clock_offset; /* ns that CLOCK_MONOTONIC is ahead of the kernel's (time namespace) */
};

extern struct table table;

/* Spans of one thread that are measured at the same time; of more, the older half is not. */
#define OPEN_SPANS 256

struct accounts;
struct contexts;

struct thread {
	struct ebt_slot *slot;
	unsigned int epoch; /* of the table that `slot` is in */
	unsigned int full_epoch; /* of the table that had no room for this thread... */
	unsigned int full_releases; /* ...when so many slots had been given back */
	unsigned int publishes; /* counts them: did another come in between? */
	unsigned int traced; /* number of the installation whose greenlet tracer this thread has */
	__u64 seen; /* PyThreadState.context_ver, as far as we know how it came about; 0 = new */
	__u64 missed; /* switches that no hook told of */
	struct accounts *open; /* of its open spans */
	struct contexts *contexts; /* in which these were started */
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
	PyObject *suspended_key;
	PyObject *lost_key;
	PyObject *on_fork; /* called once, at the first attach in a forked child */
	unsigned int default_mask; /* for sampled contexts that do not say */
	bool forked;
	bool silent; /* contexts change in ways that are not seen, and no stamp shows: publish none */
};

extern struct state state;

/* Written with the GIL held. */
struct counters {
	unsigned long long no_slot; /* threads that found the table full */
	unsigned long long errors; /* contexts that could not be published */
	unsigned long long missed; /* switches of context that no hook told of */
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

/* The calling thread's slot when it has one in this table already. */
static inline struct ebt_slot *slot_held(void)
{
	return self.epoch == table.epoch && *table.here ? self.slot : NULL;
}

/*
 * ...or had one in a table before: the new table may have the same slots, with
 * what this thread published last, and that is to be changed.
 */
static inline struct ebt_slot *slot_known(void)
{
	if (self.epoch == table.epoch && *table.here)
		return self.slot;
	return self.slot ? slot_claim() : NULL;
}

/* Put into the calling thread's slot what it held before, under a stamp of now. */
static inline void slot_write(struct ebt_slot *slot, const struct ebt_slot *copy, __u64 stamp)
{
	slot->valid = 0;
	atomic_signal_fence(memory_order_seq_cst);
	memcpy(slot->trace_id, copy->trace_id, sizeof(slot->trace_id));
	memcpy(slot->span_id, copy->span_id, sizeof(slot->span_id));
	slot->trace_flags = copy->trace_flags;
	slot->mask = copy->mask;
	slot->stamp_addr = copy->stamp_addr;
	slot->stamp = stamp;
	atomic_signal_fence(memory_order_seq_cst);
	slot->valid = 1;
}

/*
 * Publish what `context` says of the calling thread; called with no exception
 * set, leaves none.  `quiet`: run no Python for it, rather publish nothing.
 */
void publish(PyObject *context, bool quiet);
void publish_nothing(void);

/*
 * A thread, or a greenlet, has no contextvars.Context before a variable is set:
 * make it one.  There must be one wherever a context is told by its address: a
 * thread state that is taken down loses it, which the stamp then shows.
 */
bool context_exists(PyThreadState *thread);

/* What CPython says of the thread's contexts, for the stamp. */
static inline struct ebt_python python_state(const PyThreadState *thread)
{
	return (struct ebt_python){ (__u64)(uintptr_t)thread->context, thread->context_ver,
				    thread->id };
}

/* What _table.c and _breakdown.c give to the module. */
int table_init(void);
PyObject *table_arm(PyObject *module, PyObject *args);
PyObject *table_rearm(PyObject *module, PyObject *args);
PyObject *table_disarm(PyObject *module, PyObject *ignored);
PyObject *table_armed(PyObject *module, PyObject *ignored);
PyObject *table_armed_elsewhere(PyObject *module, PyObject *ignored);
PyObject *table_slot_bytes(PyObject *module, PyObject *ignored);

/* In the child of a bare clone(2), of which nobody is told: forget what is not there, before it is used. */
void table_check(void);
/* Take back what any thread has published. */
void table_clear(void);

/* What _otel_ctx.c does for readers of OTEP 4947 when this thread gets a slot, gives it back... */
void otel_point(struct ebt_slot *slot);
void otel_unpoint(void);
/* ...when the table of all threads goes, and in the child of a fork. */
void otel_unpoint_all(void);
void otel_forget(void);
bool otel_published(void);
PyObject *otel_publish(PyObject *module, PyObject *payload);
PyObject *otel_withdraw(PyObject *module, PyObject *ignored);
PyObject *otel_address(PyObject *module, PyObject *ignored);

/* What became of a span's measurement; breakdown.processor counts them under these names. */
enum { KERNEL_SPAN, MEASURED, ANOTHER_THREAD, SHARED_THREAD, NO_ROOM };

PyObject *breakdown_begin(PyObject *module, PyObject *span);
PyObject *breakdown_end(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

/* --- _switches.c --- */

struct switches {
	PyInterpreterState
		*interp; /* the hooks are the process's; this one's contexts are followed */
	PyObject *
		variable; /* its value in the current context is what runs; NULL = nothing is followed */
	unsigned int installation; /* counts them */
	bool guarded; /* its value is not what is current: whatever sets it, nobody knows what is */
};

extern struct switches switches;

/* This thread's contexts changed unseen: look for what is there to be hooked now. */
void switches_missed(PyThreadState *thread);

static inline void switches_note(PyThreadState *thread)
{
	if (self.seen != thread->context_ver && switches.variable)
		switches_missed(thread);
}

/* Another context has taken over, in whatever way: publish what it says. */
void switched(PyThreadState *thread);

PyObject *switches_follow(PyObject *module, PyObject *args);
PyObject *switches_leave(PyObject *module, PyObject *ignored);
PyObject *switches_hook(PyObject *module, PyObject *name);
PyObject *switches_unhook(PyObject *module, PyObject *name);

/* Is what this thread does our business? */
static inline bool switches_follow_thread(const PyThreadState *thread)
{
	return table.slots && switches.variable && thread->interp == switches.interp;
}

/* --- _contexts.c --- */

/* The calling thread runs another context: give the one before what it used. */
void contexts_switched(PyThreadState *thread);
/*
 * A span begins in the current context, at these times of the thread: what the
 * context had used then, and its address, or NULL when nothing follows it.
 */
PyObject *contexts_open(PyThreadState *thread, const __u64 times[EBT_CAUSES],
			__u64 own[EBT_CAUSES]);
/* What it has used now; false when it is not the one that runs. */
bool contexts_read(const PyThreadState *thread, const PyObject *context,
		   const __u64 times[EBT_CAUSES], __u64 own[EBT_CAUSES]);
/* A span that began in it, under that table, is measured no more. */
void contexts_close(const PyObject *context, unsigned int epoch);
void contexts_orphan(struct contexts *contexts);
/* Of all threads; may run Python. */
void contexts_empty_all(void);

/* The calling thread's account up to now; false when nobody counts. */
bool thread_times(__u64 times[EBT_CAUSES]);

/* --- _greenlets.c --- */

extern bool greenlets_followed;

int greenlets_on(void);
/* In this thread at once, in the others at their next switch. */
void greenlets_off(void);
/* Trace the calling thread's greenlets, once the module greenlet was imported. */
void greenlets_trace(void);
int greenlets_init(void);

/* --- _methods.c: methods of built-in types, replaced in the interpreter's own table --- */

struct method {
	PyTypeObject *type;
	const char *name;
	int flags; /* how its function is called */
	PyCFunction ours;
	PyCFunction was; /* stays readable to whoever is in ours when it is taken off */
	PyMethodDef *def; /* where ours is now; NULL = nowhere */
};

/* 0, or -1 with an exception that says why not. */
int method_replace(struct method *method);
/* False when somebody replaced ours meanwhile: it stays then. */
bool method_restore(struct method *method);

/* --- _imports.c: functions that loaded libraries import, replaced where they keep the address --- */

struct import {
	const char *name;
	void *real, *ours;
};

/* Replace them in all libraries that are loaded now; cheap when none came since.  Returns the number of places. */
unsigned int imports_replace(const struct import *imports, unsigned int count);
void imports_restore(void);

#pragma GCC visibility pop

#endif
