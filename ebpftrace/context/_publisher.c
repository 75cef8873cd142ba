/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The publisher: puts the current thread's OpenTelemetry context where BPF
 * programs find it, and reads back where the thread's time went.
 *
 * It stands in for opentelemetry.context's runtime context, so it runs twice
 * for every span that an application makes: no system call on that path, no
 * allocation of its own, and no exception of its own into the application.
 * All of it runs with the GIL held, but for the thread-exit destructor.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE /* gettid */
#include <Python.h>

#include <endian.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <structmember.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <time.h>
#include <unistd.h>

#include "ebpftrace_abi.h"

#define SAMPLED 0x01
#define NSEC_PER_SEC 1000000000LL
/* Spans of one thread that are measured at the same time; of more, the older half is not. */
#define OPEN_SPANS 256
#define CLOCKS_APART_NS 20000 /* reading two clocks takes a hundredth of that */

/* The process's context table.  `epoch` tells tables apart; 0 is none. */
static struct {
	struct ebt_slot *slots;
	const struct ebt_line *lines;
	unsigned int epoch;
	long long
		clock_offset; /* ns that CLOCK_MONOTONIC is ahead of the kernel's, in a time namespace */
} table;

/* Keeps a mapping alive while the destructor of an ending thread uses it. */
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_key_t exit_key;
static unsigned int last_epoch;

struct accounts;

struct thread {
	struct ebt_slot *slot;
	unsigned int epoch; /* of the table that `slot` is in */
	unsigned int full_epoch; /* of the table that had no room for this thread */
	struct accounts *open; /* of its open spans */
};

static _Thread_local struct thread self;

static struct {
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
} state;

/* Written with the GIL held; read by counters(). */
static struct {
	unsigned long long no_slot; /* threads that found the table full */
	unsigned long long errors; /* contexts that could not be published */
} counters;

static unsigned long long clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (unsigned long long)ts.tv_sec * NSEC_PER_SEC + (unsigned long long)ts.tv_nsec;
}

/* As bpf_ktime_get_ns() counts. */
static unsigned long long now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC) - (unsigned long long)table.clock_offset;
}

/* --- the table and the thread's slot in it ------------------------------- */

static void slot_release(void *arg)
{
	struct ebt_slot *slot = arg;

	pthread_mutex_lock(&table_lock);
	if (table.epoch && self.epoch == table.epoch && self.slot == slot) {
		slot->valid = 0;
		slot->mask = 0;
		atomic_signal_fence(memory_order_seq_cst);
		__atomic_store_n(&slot->tid, EBT_TID_GONE, __ATOMIC_RELEASE);
	}
	self.slot = NULL;
	pthread_mutex_unlock(&table_lock);
	free(self.open);
	self.open = NULL;
}

static bool slot_take(struct ebt_slot *slot, __u32 was, __u32 tid)
{
	if (!__atomic_compare_exchange_n(&slot->tid, &was, tid, false, __ATOMIC_ACQ_REL,
					 __ATOMIC_RELAXED))
		return false;
	slot->valid = 0;
	slot->mask = 0;
	slot->attrs_size = 0;
	slot->claimed_ns = now_ns();
	atomic_signal_fence(memory_order_seq_cst);
	slot->generation++;
	return true;
}

/* A slot for this thread: once in its life, one gettid() and no bpf() call. */
static struct ebt_slot *slot_claim(void)
{
	__u32 tid = (__u32)gettid();
	__u32 home = ebt_slot_home(tid);

	if (self.full_epoch == table.epoch)
		return NULL;
	for (unsigned int probe = 0; probe < EBT_TABLE_PROBES; probe++) {
		struct ebt_slot *slot = &table.slots[(home + probe) & (EBT_TABLE_SLOTS - 1)];
		__u32 owner = __atomic_load_n(&slot->tid, __ATOMIC_ACQUIRE);

		/* our own tid: a thread that ended without telling had it before us */
		if ((owner == 0 || owner == EBT_TID_GONE || owner == tid) &&
		    slot_take(slot, owner, tid)) {
			self.slot = slot;
			self.epoch = table.epoch;
			pthread_setspecific(exit_key, slot);
			return slot;
		}
	}
	self.full_epoch = table.epoch;
	counters.no_slot++;
	return NULL;
}

static inline struct ebt_slot *slot_mine(void)
{
	if (self.epoch == table.epoch && self.slot)
		return self.slot;
	return slot_claim();
}

/* In the child of a fork the mapping is gone (MADV_DONTFORK): forget it before anyone writes. */
static void after_fork_in_child(void)
{
	pthread_mutex_init(&table_lock, NULL); /* the thread that held it is not here */
	table.slots = NULL;
	table.lines = NULL;
	table.epoch = 0;
	self.slot = NULL;
}

/* --- publishing ---------------------------------------------------------- */

static int trace_id_bytes(PyObject *id, unsigned char *bytes)
{
#if PY_VERSION_HEX >= 0x030D0000
	return PyLong_AsNativeBytes(id, bytes, 16,
				    Py_ASNATIVEBYTES_BIG_ENDIAN |
					    Py_ASNATIVEBYTES_UNSIGNED_BUFFER) < 0 ?
		       -1 :
		       0;
#else
	return _PyLong_AsByteArray((PyLongObject *)id, bytes, 16, 0, 0);
#endif
}

/*
 * The bytes of a trace id.  The last one is kept: all spans of a trace share
 * one int, and turning that into bytes costs more than the rest of a publish.
 */
static int trace_id_store(PyObject *id, __u8 *to)
{
	static struct {
		PyObject *id; /* referred to, so that no other int gets its address */
		unsigned char bytes[16];
	} last;
	unsigned char bytes[16];

	if (id != last.id) {
		if (!PyLong_Check(id) || trace_id_bytes(id, bytes))
			return -1;
		memcpy(last.bytes, bytes, sizeof(bytes));
		Py_XSETREF(last.id, Py_NewRef(id));
	}
	memcpy(to, last.bytes, sizeof(last.bytes));
	return 0;
}

/* A valid span context's span id fits 64 bits, so nothing is masked away. */
static int span_id_store(PyObject *id, __u8 *to)
{
	__u64 bytes;

	if (!PyLong_Check(id))
		return -1;
	bytes = htobe64(PyLong_AsUnsignedLongLongMask(id));
	memcpy(to, &bytes, sizeof(bytes));
	return 0;
}

/*
 * The programs enabled by `context` for the span whose id is `span_id`.  The
 * value is (mask for this context and all below it, mask for one span alone,
 * the id of that span).
 */
static unsigned int context_mask(PyObject *context, PyObject *span_id)
{
	PyObject *value = PyDict_GetItemWithError(context, state.mask_key);
	unsigned long mask = state.default_mask;

	if (!value || !PyTuple_Check(value) || PyTuple_GET_SIZE(value) != 3)
		return (unsigned int)mask;
	mask |= PyLong_AsUnsignedLongMask(PyTuple_GET_ITEM(value, 0));
	if (PyObject_RichCompareBool(PyTuple_GET_ITEM(value, 2), span_id, Py_EQ) == 1)
		mask |= PyLong_AsUnsignedLongMask(PyTuple_GET_ITEM(value, 1));
	return (unsigned int)mask;
}

/* New reference to the SpanContext tuple of the span in `context`, or NULL: none, or not one we know. */
static PyObject *span_context(PyObject *context)
{
	PyObject *span, *found;

	if (!PyDict_Check(context))
		return NULL;
	span = PyDict_GetItemWithError(context, state.span_key);
	if (!span)
		return NULL;
	found = PyObject_GetAttr(span, state.context_attr);
	if (!found) {
		PyErr_Clear();
		found = PyObject_CallMethodNoArgs(span, state.get_span_context);
	}
	if (found && (!PyTuple_Check(found) || PyTuple_GET_SIZE(found) < 6)) {
		Py_CLEAR(found);
		counters.errors++;
	}
	return found;
}

static void slot_store(struct ebt_slot *slot, PyObject *context, PyObject *span)
{
	unsigned long flags = PyLong_AsUnsignedLongMask(PyTuple_GET_ITEM(span, 3));
	PyThreadState *thread = PyThreadState_Get();

	if (trace_id_store(PyTuple_GET_ITEM(span, 0), slot->trace_id) ||
	    span_id_store(PyTuple_GET_ITEM(span, 1), slot->span_id)) {
		counters.errors++;
		return;
	}
	slot->trace_flags = (__u8)flags;
	slot->mask = flags & SAMPLED ? context_mask(context, PyTuple_GET_ITEM(span, 1)) : 0;
	/* CPython counts the switches of contexts in a thread: another count, another context */
	slot->stamp_addr = (__u64)(uintptr_t)&thread->context_ver;
	slot->stamp = thread->context_ver;
	atomic_signal_fence(memory_order_seq_cst);
	slot->valid = 1;
}

/* Called with no exception set; leaves none. */
static void publish(PyObject *context)
{
	struct ebt_slot *slot;
	PyObject *span;

	if (!table.slots)
		return;
	slot = slot_mine();
	if (!slot)
		return;
	/* Only this thread's own switches and interrupts can look in between: a compiler fence is enough. */
	slot->valid = 0;
	atomic_signal_fence(memory_order_seq_cst);
	span = span_context(context);
	if (span) {
		if (PyTuple_GET_ITEM(span, 5) == Py_True)
			slot_store(slot, context, span);
		Py_DECREF(span);
	}
	if (PyErr_Occurred()) {
		PyErr_Clear();
		counters.errors++;
	}
}

static void publish_nothing(void)
{
	struct ebt_slot *slot = slot_mine();

	if (slot)
		slot->valid = 0;
}

static void call_on_fork(void)
{
	PyObject *result;

	state.forked = false;
	if (!state.on_fork)
		return;
	result = PyObject_CallNoArgs(state.on_fork);
	if (!result)
		PyErr_WriteUnraisable(state.on_fork);
	Py_XDECREF(result);
}

/* --- the runtime context ------------------------------------------------- */

typedef struct {
	PyObject_HEAD
	PyObject *inner; /* the runtime context that was there before */
	PyObject *variable; /* its ContextVar when it is OpenTelemetry's own, else NULL */
} RuntimeContext;

static PyObject *inner_current(RuntimeContext *runtime)
{
	PyObject *context = NULL;

	if (!runtime->variable)
		return PyObject_CallMethodNoArgs(runtime->inner, state.get_current);
	if (PyContextVar_Get(runtime->variable, NULL, &context) < 0)
		return NULL;
	if (!context)
		PyErr_SetObject(PyExc_LookupError, runtime->variable);
	return context;
}

static PyObject *runtime_attach(RuntimeContext *runtime, PyObject *context)
{
	PyObject *token;

	if (runtime->variable)
		token = PyContextVar_Set(runtime->variable, context);
	else
		token = PyObject_CallMethodOneArg(runtime->inner, state.attach, context);
	if (!token)
		return NULL;
	if (state.forked)
		call_on_fork();
	publish(context);
	return token;
}

/* Publish what is current after a detach, whether or not that failed. */
static void publish_current(RuntimeContext *runtime)
{
	PyObject *type, *value, *traceback, *context;

	if (!table.slots)
		return;
	PyErr_Fetch(&type, &value, &traceback);
	context = inner_current(runtime);
	if (context) {
		publish(context);
		Py_DECREF(context);
	} else {
		/* nobody knows what is current: it is not what was published before */
		PyErr_Clear();
		counters.errors++;
		publish_nothing();
	}
	PyErr_Restore(type, value, traceback);
}

static PyObject *runtime_detach(RuntimeContext *runtime, PyObject *token)
{
	PyObject *result;

	if (runtime->variable) {
		result = PyContextVar_Reset(runtime->variable, token) < 0 ? NULL :
									    Py_NewRef(Py_None);
	} else {
		result = PyObject_CallMethodOneArg(runtime->inner, state.detach, token);
	}
	publish_current(runtime);
	return result;
}

static PyObject *runtime_get_current(RuntimeContext *runtime, PyObject *Py_UNUSED(ignored))
{
	return inner_current(runtime);
}

static PyObject *runtime_publish(RuntimeContext *runtime, PyObject *Py_UNUSED(ignored))
{
	publish_current(runtime);
	Py_RETURN_NONE;
}

static int runtime_init(RuntimeContext *runtime, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "inner", "variable", NULL };
	PyObject *inner, *variable = Py_None;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O", names, &inner, &variable))
		return -1;
	if (variable != Py_None && !PyContextVar_CheckExact(variable)) {
		PyErr_SetString(PyExc_TypeError,
				"variable must be a contextvars.ContextVar or None");
		return -1;
	}
	Py_XSETREF(runtime->inner, Py_NewRef(inner));
	Py_XSETREF(runtime->variable, variable == Py_None ? NULL : Py_NewRef(variable));
	return 0;
}

static int runtime_traverse(RuntimeContext *runtime, visitproc visit, void *arg)
{
	Py_VISIT(runtime->inner);
	Py_VISIT(runtime->variable);
	return 0;
}

static int runtime_clear(RuntimeContext *runtime)
{
	Py_CLEAR(runtime->inner);
	Py_CLEAR(runtime->variable);
	return 0;
}

static void runtime_dealloc(RuntimeContext *runtime)
{
	PyObject_GC_UnTrack(runtime);
	runtime_clear(runtime);
	Py_TYPE(runtime)->tp_free((PyObject *)runtime);
}

static PyMethodDef runtime_methods[] = {
	{ "attach", (PyCFunction)runtime_attach, METH_O,
	  "Make a context current, publish its span; returns the token for detach()." },
	{ "detach", (PyCFunction)runtime_detach, METH_O,
	  "Make the context before the token's attach() current again, and publish its span." },
	{ "get_current", (PyCFunction)runtime_get_current, METH_NOARGS, "The current context." },
	{ "publish", (PyCFunction)runtime_publish, METH_NOARGS,
	  "Publish the current context once more." },
	{ NULL },
};

static PyMemberDef runtime_members[] = {
	{ "inner", T_OBJECT, offsetof(RuntimeContext, inner), READONLY,
	  "The runtime context that this wraps." },
	{ NULL },
};

static PyTypeObject runtime_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "ebpftrace.context._publisher.RuntimeContext",
	.tp_doc =
		"OpenTelemetry's runtime context, which also publishes what is current to the kernel.",
	.tp_basicsize = sizeof(RuntimeContext),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
	.tp_new = PyType_GenericNew,
	.tp_init = (initproc)runtime_init,
	.tp_traverse = (traverseproc)runtime_traverse,
	.tp_clear = (inquiry)runtime_clear,
	.tp_dealloc = (destructor)runtime_dealloc,
	.tp_methods = runtime_methods,
	.tp_members = runtime_members,
};

/* --- the breakdown ------------------------------------------------------- */

struct account {
	struct ebt_slot *slot;
	__u32 generation;
	unsigned int epoch;
	__u64 stamp;
	__u64 lost;
	__u64 times[EBT_CAUSES];
};

/* What became of a span's measurement; breakdown.processor counts them under these names. */
enum { KERNEL_SPAN, MEASURED, ANOTHER_THREAD, SHARED_THREAD, NO_ROOM };

/* What is known of the end of a thread's account: the stint on a CPU before `on_since`, and the wait after it. */
struct recent {
	__u64 now;
	__u64 on_since;
	__u64 last_on;
	__u64 last_off; /* 0 = nothing is known from before on_since */
	__u64 woken_at; /* 0 = it was not asleep, or its waker is not known */
	__u8 cause;
};

/* How the time since `then` was spent; returns how much of it lies before what is known. */
static __u64 spent_since(const struct recent *recent, __u64 then, __u64 spent[EBT_CAUSES])
{
	__u64 wait_end = recent->on_since;

	if (then >= recent->now)
		return 0;
	if (then >= recent->on_since) {
		spent[EBT_ON_CPU] += recent->now - then;
		return 0;
	}
	spent[EBT_ON_CPU] += recent->now - recent->on_since;
	/* A thread that was off its CPU at `then` did not look at the clock: it is not its own time. */
	if (!recent->last_off || recent->cause >= EBT_CAUSES || then >= recent->last_off)
		return recent->on_since - then;
	if (recent->woken_at > recent->last_off && recent->woken_at < recent->on_since) {
		wait_end = recent->woken_at;
		spent[EBT_RUN_QUEUE] += recent->on_since - recent->woken_at;
	}
	spent[recent->cause] += wait_end - recent->last_off;
	if (then >= recent->last_on) {
		spent[EBT_ON_CPU] += recent->last_off - then;
		return 0;
	}
	spent[EBT_ON_CPU] += recent->last_off - recent->last_on;
	return recent->last_on - then;
}

/*
 * The kernel may not report a switch in (it does not trace all of its own
 * tasks): do here what sched.bpf.c then does at the next switch out.
 */
static void account_resume(struct account *account, struct recent *recent, __u64 off_since,
			   __u64 exec_ns)
{
	__u64 ran = clock_ns(CLOCK_THREAD_CPUTIME_ID) - exec_ns;
	__u64 now = now_ns();
	__u64 wait_end;

	recent->last_on = recent->on_since;
	recent->last_off = off_since;
	recent->on_since = now - MIN(ran, now - off_since);
	wait_end = recent->on_since;
	if (recent->woken_at > off_since && recent->woken_at < wait_end) {
		account->times[EBT_RUN_QUEUE] += wait_end - recent->woken_at;
		wait_end = recent->woken_at;
	}
	if (recent->cause < EBT_CAUSES)
		account->times[recent->cause] += wait_end - off_since;
}

/* When `epoch_ns`, a Python int, was on the clock of the account; now when it is in the future or no time. */
static __u64 account_time(PyObject *epoch_ns, __u64 now)
{
	unsigned long long then = PyLong_Check(epoch_ns) ? PyLong_AsUnsignedLongLong(epoch_ns) : 0;
	__u64 today;

	if (!then || then == (unsigned long long)-1) {
		PyErr_Clear();
		return now;
	}
	today = clock_ns(CLOCK_REALTIME);
	if (then >= today)
		return now;
	return today - then < now ? now - (today - then) : 0;
}

/*
 * Where this thread's time went up to now, and where since `epoch_ns`, which is a little earlier: the SDK looks at
 * the clock first and calls span processors then, and some instrumentations pass the start time of a request that
 * they have worked on since.  False when nobody counts.
 */
static bool account_read(struct account *account, PyObject *epoch_ns, __u64 since[EBT_CAUSES],
			 __u64 *unknown)
{
	struct ebt_slot *slot;
	const volatile struct ebt_line *line;
	struct recent recent;
	__u64 switches, then;
	int tries = 4;

	if (!table.slots)
		return false;
	slot = slot_mine();
	if (!slot)
		return false;
	line = &table.lines[slot - table.slots];
	account->slot = slot;
	account->generation = slot->generation;
	account->epoch = table.epoch;
	account->stamp = PyThreadState_Get()->context_ver;
	/*
	 * The kernel writes the line when this thread is switched out: see the same count twice.  And read both clocks
	 * at one moment: a hypervisor may take the CPU away in between, which no count shows.
	 */
	do {
		switches = line->switches;
		atomic_signal_fence(memory_order_seq_cst);
		if (line->owner == (slot->tid | (__u64)slot->generation << 32)) {
			for (int cause = 0; cause < EBT_CAUSES; cause++)
				account->times[cause] = line->times[cause];
			account->lost = line->lost;
			recent.on_since = line->on_since;
			recent.last_on = line->last_on;
			recent.last_off = line->last_off;
			recent.woken_at = line->woken_at;
			recent.cause = line->cause;
			/* this thread runs: when it counts as off, its switch in was not reported */
			if (line->off_since)
				account_resume(account, &recent, line->off_since, line->exec_ns);
		} else { /* not switched out since it claimed the slot */
			memset(account->times, 0, sizeof(account->times));
			account->lost = 0;
			memset(&recent, 0, sizeof(recent));
			recent.on_since = slot->claimed_ns;
		}
		recent.now = now_ns();
		then = account_time(epoch_ns, recent.now);
		account->times[EBT_ON_CPU] += recent.now - recent.on_since;
		atomic_signal_fence(memory_order_seq_cst);
	} while (line->switches != switches ||
		 (now_ns() - recent.now > CLOCKS_APART_NS && --tries));
	memset(since, 0, sizeof(*since) * EBT_CAUSES);
	*unknown = spent_since(&recent, then, since);
	return true;
}

/*
 * The accounts of this thread's open spans, the youngest last: that is nearly
 * always the one that ends next.  Not on the spans themselves: an attribute
 * that their class does not have makes each of them a slower object.
 */
struct accounts {
	unsigned int count;
	__u64 span_ids[OPEN_SPANS];
	struct account of[OPEN_SPANS];
};

static void accounts_remove(struct accounts *open, unsigned int first, unsigned int count)
{
	unsigned int after = first + count, tail = open->count - after;

	memmove(&open->span_ids[first], &open->span_ids[after], tail * sizeof(open->span_ids[0]));
	memmove(&open->of[first], &open->of[after], tail * sizeof(open->of[0]));
	open->count -= count;
}

static void accounts_add(struct accounts *open, __u64 span_id, const struct account *account)
{
	if (open->count == OPEN_SPANS) /* many of these will never end here */
		accounts_remove(open, 0, OPEN_SPANS / 2);
	open->span_ids[open->count] = span_id;
	open->of[open->count] = *account;
	open->count++;
}

static bool accounts_take(struct accounts *open, __u64 span_id, struct account *account)
{
	for (unsigned int i = open ? open->count : 0; i-- > 0;) {
		if (open->span_ids[i] != span_id)
			continue;
		*account = open->of[i];
		accounts_remove(open, i, 1);
		return true;
	}
	return false;
}

static int span_id_of(PyObject *span, __u64 *span_id)
{
	PyObject *context = PyObject_GetAttr(span, state.context_attr);

	if (!context)
		return -1;
	if (!PyTuple_Check(context) || PyTuple_GET_SIZE(context) < 2) {
		PyErr_SetString(PyExc_TypeError, "a span context of another kind");
		Py_DECREF(context);
		return -1;
	}
	*span_id = PyLong_AsUnsignedLongLongMask(PyTuple_GET_ITEM(context, 1));
	Py_DECREF(context);
	return PyErr_Occurred() ? -1 : 0;
}

static int account_open(__u64 span_id, PyObject *started_ns)
{
	struct account account = { 0 };
	__u64 since[EBT_CAUSES], unknown;

	if (!account_read(&account, started_ns, since, &unknown))
		return 0;
	/* They may wrap around below zero: only differences count. */
	for (int cause = 0; cause < EBT_CAUSES; cause++)
		account.times[cause] -= since[cause];
	account.times[EBT_OTHER] -= unknown;
	if (!self.open) {
		self.open = malloc(sizeof(*self.open));
		if (!self.open) {
			PyErr_NoMemory();
			return -1;
		}
		self.open->count = 0;
	}
	accounts_add(self.open, span_id, &account);
	return 0;
}

static PyObject *begin(PyObject *Py_UNUSED(module), PyObject *span)
{
	PyObject *started_ns = PyObject_GetAttr(span, state.start_time_attr);
	__u64 span_id;
	int failed;

	if (!started_ns)
		return NULL;
	failed = span_id_of(span, &span_id) || account_open(span_id, started_ns);
	Py_DECREF(started_ns);
	if (failed)
		return NULL;
	Py_RETURN_NONE;
}

/* Take what came after the span's end off its parts; they add up to no more than its time. */
static void parts_cut(__u64 parts[EBT_CAUSES], const __u64 since[EBT_CAUSES], __u64 unknown)
{
	/* The tail of a span is waiting, if it is long at all: running on, the SDK needs microseconds. */
	static const enum ebt_cause order[EBT_CAUSES] = {
		EBT_THROTTLED, EBT_RUN_QUEUE,  EBT_LOCK,    EBT_OTHER, EBT_ON_CPU,
		EBT_SLEEP,     EBT_PAGE_FAULT, EBT_NETWORK, EBT_DISK,
	};

	for (int cause = 0; cause < EBT_CAUSES; cause++) {
		__u64 cut = MIN(since[cause], parts[cause]);

		parts[cause] -= cut;
		unknown += since[cause] - cut;
	}
	for (int i = 0; i < EBT_CAUSES && unknown; i++) {
		__u64 cut = MIN(unknown, parts[order[i]]);

		parts[order[i]] -= cut;
		unknown -= cut;
	}
}

static int set_number(PyObject *dict, PyObject *key, __u64 value)
{
	PyObject *number = PyLong_FromUnsignedLongLong(value);
	int failed;

	if (!number)
		return -1;
	failed = PyDict_SetItem(dict, key, number);
	Py_DECREF(number);
	return failed;
}

/* Are there `count` places left in the attributes, by the limit that the application set for its spans? */
static int attributes_room(PyObject *attributes, PyObject *dict, Py_ssize_t count)
{
	PyObject *limit = PyObject_GetAttr(attributes, state.maxlen_attr);
	Py_ssize_t most;

	if (!limit)
		return -1;
	most = limit == Py_None ? PY_SSIZE_T_MAX : PyLong_AsSsize_t(limit);
	Py_DECREF(limit);
	if (most == -1 && PyErr_Occurred())
		return -1;
	return PyDict_GET_SIZE(dict) + count <= most;
}

/*
 * Put the parts into the attributes: past their setters, which are closed for a
 * span that has ended, and past their lock, for this is the span's last writer
 * and whoever reads comes later.
 */
static int parts_store(PyObject *attributes, const __u64 parts[EBT_CAUSES], __u64 lost)
{
	PyObject *dict = PyObject_GetAttr(attributes, state.dict_attr);
	Py_ssize_t count = lost ? 1 : 0;
	int verdict;

	if (!dict || !PyDict_CheckExact(dict)) {
		Py_XDECREF(dict);
		return PyErr_Occurred() ? -1 : NO_ROOM;
	}
	for (int cause = 0; cause < EBT_CAUSES; cause++)
		count += parts[cause] || cause == EBT_ON_CPU;
	verdict = attributes_room(attributes, dict, count);
	if (verdict >= 0)
		verdict = verdict ? MEASURED : NO_ROOM;
	for (int cause = 0; cause < EBT_CAUSES && verdict == MEASURED; cause++) {
		if ((parts[cause] || cause == EBT_ON_CPU) &&
		    set_number(dict, state.time_keys[cause], parts[cause]))
			verdict = -1;
	}
	if (verdict == MEASURED && lost && set_number(dict, state.lost_key, lost))
		verdict = -1;
	Py_DECREF(dict);
	return verdict;
}

/* Did the thread take turns between tasks?  Only the interpreter's libraries know. */
static int thread_shared(PyObject *ask)
{
	PyObject *answer = PyObject_CallNoArgs(ask);
	int shared = answer ? PyObject_IsTrue(answer) : -1;

	Py_XDECREF(answer);
	return shared;
}

static int account_close(PyObject *span, PyObject *attributes, PyObject *ask_shared)
{
	struct account before, now = { 0 };
	__u64 parts[EBT_CAUSES], since[EBT_CAUSES], unknown, span_id;
	PyObject *ended_ns;
	bool mine;

	if (span_id_of(span, &span_id))
		return -1;
	/* epoch and slot are the thread's identity; ask without claiming a slot for a stranger */
	if (!accounts_take(self.open, span_id, &before) || !table.slots ||
	    self.epoch != before.epoch || self.slot != before.slot)
		return ANOTHER_THREAD;
	ended_ns = PyObject_GetAttr(span, state.end_time_attr);
	if (!ended_ns)
		return -1;
	mine = account_read(&now, ended_ns, since, &unknown);
	Py_DECREF(ended_ns);
	if (!mine || now.generation != before.generation || now.epoch != before.epoch)
		return ANOTHER_THREAD;
	if (now.stamp != before.stamp) {
		int shared = thread_shared(ask_shared);

		if (shared)
			return shared < 0 ? -1 : SHARED_THREAD;
	}
	for (int cause = 0; cause < EBT_CAUSES; cause++)
		parts[cause] = now.times[cause] - before.times[cause];
	parts_cut(parts, since, unknown);
	return parts_store(attributes, parts, now.lost - before.lost);
}

static PyObject *end(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
	PyObject *attributes;
	int verdict;

	if (nargs != 2) {
		PyErr_SetString(PyExc_TypeError, "end() takes a span and a function");
		return NULL;
	}
	attributes = PyObject_GetAttr(args[0], state.attributes_attr);
	if (!attributes)
		return NULL;
	if (PyDict_CheckExact(attributes))
		verdict = KERNEL_SPAN;
	else
		verdict = account_close(args[0], attributes, args[1]);
	Py_DECREF(attributes);
	return verdict < 0 ? NULL : PyLong_FromLong(verdict);
}

/* --- the module ---------------------------------------------------------- */

static PyObject *arm(PyObject *Py_UNUSED(module), PyObject *args)
{
	size_t slots_size = sizeof(struct ebt_slot) * EBT_TABLE_SLOTS;
	size_t lines_size = sizeof(struct ebt_line) * EBT_TABLE_SLOTS;
	void *slots, *lines;
	long long clock_offset = 0;
	int slots_fd, lines_fd;

	if (!PyArg_ParseTuple(args, "ii|L", &slots_fd, &lines_fd, &clock_offset))
		return NULL;
	if (table.slots) {
		PyErr_SetString(PyExc_RuntimeError,
				"the publisher has a context table already; disarm() it first");
		return NULL;
	}
	slots = mmap(NULL, slots_size, PROT_READ | PROT_WRITE, MAP_SHARED, slots_fd, 0);
	if (slots == MAP_FAILED)
		return PyErr_SetFromErrno(PyExc_OSError);
	lines = mmap(NULL, lines_size, PROT_READ, MAP_SHARED, lines_fd, 0);
	if (lines == MAP_FAILED || madvise(slots, slots_size, MADV_DONTFORK) ||
	    madvise(lines, lines_size, MADV_DONTFORK)) {
		PyErr_SetFromErrno(PyExc_OSError);
		munmap(slots, slots_size);
		if (lines != MAP_FAILED)
			munmap(lines, lines_size);
		return NULL;
	}
	pthread_mutex_lock(&table_lock);
	table.slots = slots;
	table.lines = lines;
	table.clock_offset = clock_offset;
	table.epoch = ++last_epoch;
	pthread_mutex_unlock(&table_lock);
	state.forked = false;
	Py_RETURN_NONE;
}

static PyObject *disarm(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	struct ebt_slot *slots;
	const struct ebt_line *lines;

	pthread_mutex_lock(&table_lock);
	slots = table.slots;
	lines = table.lines;
	table.slots = NULL;
	table.lines = NULL;
	table.epoch = 0;
	pthread_mutex_unlock(&table_lock);
	if (slots) {
		munmap(slots, sizeof(*slots) * EBT_TABLE_SLOTS);
		munmap((void *)lines, sizeof(*lines) * EBT_TABLE_SLOTS);
	}
	state.forked = false;
	Py_RETURN_NONE;
}

static PyObject *armed(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyBool_FromLong(table.slots != NULL);
}

static PyObject *configure(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "span_key", "mask_key", "on_fork", NULL };
	PyObject *span_key, *mask_key, *on_fork;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "UUO", names, &span_key, &mask_key,
					 &on_fork))
		return NULL;
	Py_XSETREF(state.span_key, Py_NewRef(span_key));
	Py_XSETREF(state.mask_key, Py_NewRef(mask_key));
	Py_XSETREF(state.on_fork, Py_NewRef(on_fork));
	Py_RETURN_NONE;
}

static PyObject *set_default_mask(PyObject *Py_UNUSED(module), PyObject *mask)
{
	unsigned long value = PyLong_AsUnsignedLong(mask);

	if (PyErr_Occurred())
		return NULL;
	state.default_mask = (unsigned int)value;
	Py_RETURN_NONE;
}

/* The table was forgotten in a fork: at the next attach, call on_fork. */
static PyObject *expect_fork(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	state.forked = true;
	Py_RETURN_NONE;
}

static PyObject *get_counters(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return Py_BuildValue("{s:K,s:K}", "no_slot", counters.no_slot, "errors", counters.errors);
}

/* The calling thread's slot as bytes, for tests and `doctor`; None when it has none. */
static PyObject *slot_bytes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	if (!table.slots || self.epoch != table.epoch || !self.slot)
		Py_RETURN_NONE;
	return PyBytes_FromStringAndSize((char *)self.slot, sizeof(*self.slot));
}

static PyMethodDef module_methods[] = {
	{ "arm", arm, METH_VARARGS,
	  "arm(slots_fd, lines_fd, clock_offset_ns=0): map a context table and publish into it from now on." },
	{ "disarm", disarm, METH_NOARGS, "Stop publishing and unmap the table." },
	{ "armed", armed, METH_NOARGS, "Is there a table?" },
	{ "configure", (PyCFunction)(void (*)(void))configure, METH_VARARGS | METH_KEYWORDS,
	  "configure(span_key, mask_key, on_fork): the context keys, and what to call at a forked child's first attach." },
	{ "expect_fork", expect_fork, METH_NOARGS,
	  "In a forked child: call on_fork at the next attach." },
	{ "set_default_mask", set_default_mask, METH_O,
	  "Programs enabled for every sampled context." },
	{ "counters", get_counters, METH_NOARGS, "What could not be published, by reason." },
	{ "slot_bytes", slot_bytes, METH_NOARGS, "A copy of the calling thread's slot, or None." },
	{ "begin", begin, METH_O,
	  "begin(span): note how this thread's account stands at the start of a span." },
	{ "end", (PyCFunction)(void (*)(void))end, METH_FASTCALL,
	  "end(span, shared): put the times since begin() on a span that has just ended; returns one of the constants. "
	  "shared() tells whether the thread took turns between tasks." },
	{ NULL },
};

static struct PyModuleDef module_def = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_publisher",
	.m_doc = "Publishes the current trace context of each thread to BPF programs.",
	.m_size = -1,
	.m_methods = module_methods,
};

static const char *const cause_names[EBT_CAUSES] = {
	[EBT_ON_CPU] = "on_cpu", [EBT_RUN_QUEUE] = "run_queue",	  [EBT_THROTTLED] = "throttled",
	[EBT_DISK] = "disk",	 [EBT_NETWORK] = "network",	  [EBT_LOCK] = "lock",
	[EBT_SLEEP] = "sleep",	 [EBT_PAGE_FAULT] = "page_fault", [EBT_OTHER] = "other",
};

static int state_init(void)
{
	state.context_attr = PyUnicode_InternFromString("_context");
	state.get_span_context = PyUnicode_InternFromString("get_span_context");
	state.attach = PyUnicode_InternFromString("attach");
	state.detach = PyUnicode_InternFromString("detach");
	state.get_current = PyUnicode_InternFromString("get_current");
	state.attributes_attr = PyUnicode_InternFromString("_attributes");
	state.start_time_attr = PyUnicode_InternFromString("_start_time");
	state.end_time_attr = PyUnicode_InternFromString("_end_time");
	state.dict_attr = PyUnicode_InternFromString("_dict");
	state.maxlen_attr = PyUnicode_InternFromString("maxlen");
	state.lost_key = PyUnicode_InternFromString("ebpftrace.lost_records");
	state.span_key = PyUnicode_InternFromString("");
	state.mask_key = Py_XNewRef(state.span_key);
	for (int cause = 0; cause < EBT_CAUSES; cause++) {
		state.time_keys[cause] =
			PyUnicode_FromFormat("ebpftrace.time.%s", cause_names[cause]);
		if (!state.time_keys[cause])
			return -1;
		PyUnicode_InternInPlace(&state.time_keys[cause]);
	}
	return PyErr_Occurred() ? -1 : 0;
}

static int add_time_keys(PyObject *module)
{
	PyObject *keys = PyTuple_New(EBT_CAUSES);
	int failed;

	if (!keys)
		return -1;
	for (int cause = 0; cause < EBT_CAUSES; cause++)
		PyTuple_SET_ITEM(keys, cause, Py_NewRef(state.time_keys[cause]));
	failed = PyModule_AddObjectRef(module, "TIME_KEYS", keys);
	Py_DECREF(keys);
	return failed;
}

PyMODINIT_FUNC PyInit__publisher(void)
{
	PyObject *module;

	if (pthread_key_create(&exit_key, slot_release) ||
	    pthread_atfork(NULL, NULL, after_fork_in_child)) {
		PyErr_SetString(PyExc_ImportError,
				"no thread key or fork handler left in this process");
		return NULL;
	}
	if (state_init() || PyType_Ready(&runtime_type))
		return NULL;
	module = PyModule_Create(&module_def);
	if (!module)
		return NULL;
	if (PyModule_AddObjectRef(module, "RuntimeContext", (PyObject *)&runtime_type) ||
	    PyModule_AddIntConstant(module, "KERNEL_SPAN", KERNEL_SPAN) ||
	    PyModule_AddIntConstant(module, "MEASURED", MEASURED) ||
	    PyModule_AddIntConstant(module, "ANOTHER_THREAD", ANOTHER_THREAD) ||
	    PyModule_AddIntConstant(module, "SHARED_THREAD", SHARED_THREAD) ||
	    PyModule_AddIntConstant(module, "NO_ROOM", NO_ROOM) ||
	    PyModule_AddIntConstant(module, "TABLE_SLOTS", EBT_TABLE_SLOTS) ||
	    add_time_keys(module)) {
		Py_DECREF(module);
		return NULL;
	}
	return module;
}
