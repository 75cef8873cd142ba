/* SPDX-License-Identifier: Apache-2.0 */
/* The breakdown: what the kernel's account of this thread says about one of its spans. */
#include "_publisher.h"

#include <stdlib.h>
#include <sys/param.h>

#define SHORT_LEAD_NS 100000
#define CLOCKS_APART_NS 20000 /* reading two clocks takes a hundredth of that */

struct account {
	struct ebt_slot *slot;
	__u32 generation;
	unsigned int epoch;
	__u64 stamp;
	__u64 lost;
	__u64 missed; /* switches of context that no hook told of, up to here */
	__u64 times[EBT_CAUSES];
	__u64 own[EBT_CAUSES]; /* ...of which its context's own */
	PyObject *context; /* where the span began, while that is noted; an address only */
};

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
 * tasks): do here what sched-trace.bpf.c then does at the next switch out.
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
	unsigned long long then;
	__u64 today;

	if (!epoch_ns ||
	    !PyLong_Check(epoch_ns)) /* an exception of the application's may be pending */
		return now;
	then = PyLong_AsUnsignedLongLong(epoch_ns);
	if (!then)
		return now;
	if (then == (unsigned long long)-1) {
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
	PyThreadState *thread = PyThreadState_Get();
	__u64 switches, then;
	int tries = 4;

	if (!table.slots)
		return false;
	slot = slot_mine();
	if (!slot)
		return false;
	switches_note(thread);
	line = &table.lines[slot - table.slots];
	account->slot = slot;
	account->generation = slot->generation;
	account->epoch = table.epoch;
	account->stamp = thread->context_ver;
	account->missed = self.missed;
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

/* By way of a whole account: for the rare case that the thread's switch in was not reported. */
static bool account_times(__u64 times[EBT_CAUSES])
{
	__u64 since[EBT_CAUSES], unknown;
	struct account account;

	if (!account_read(&account, NULL, since, &unknown))
		return false;
	memcpy(times, account.times, sizeof(account.times));
	return true;
}

bool thread_times(__u64 times[EBT_CAUSES])
{
	const struct ebt_slot *slot = table.slots ? slot_held() : NULL;
	const volatile struct ebt_line *line;
	__u64 switches, on_since;
	bool mine;

	if (!slot)
		return false;
	line = &table.lines[slot - table.slots];
	do {
		switches = line->switches;
		atomic_signal_fence(memory_order_seq_cst);
		mine = line->owner == (slot->tid | (__u64)slot->generation << 32);
		if (mine && line->off_since)
			return account_times(times);
		for (int cause = 0; cause < EBT_CAUSES; cause++)
			times[cause] = mine ? line->times[cause] : 0;
		on_since = mine ? line->on_since : slot->claimed_ns;
		times[EBT_ON_CPU] += now_ns() - on_since;
		atomic_signal_fence(memory_order_seq_cst);
	} while (line->switches != switches);
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
	struct {
		PyObject *context;
		unsigned int epoch;
	} closed[OPEN_SPANS / 2];
	int count = 0;

	if (open->count == OPEN_SPANS) { /* many of these will never end here */
		for (; count < OPEN_SPANS / 2; count++) {
			closed[count].context = open->of[count].context;
			closed[count].epoch = open->of[count].epoch;
		}
		accounts_remove(open, 0, OPEN_SPANS / 2);
	}
	open->span_ids[open->count] = span_id;
	open->of[open->count] = *account;
	open->count++;
	/* last: a context that goes may run code that ends spans, or begins some */
	for (int i = 0; i < count; i++)
		contexts_close(closed[i].context, closed[i].epoch);
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
	account.context = contexts_open(PyThreadState_Get(), account.times, account.own);
	/* A lead as short as the SDK's own way to us, at a thread's first span: it ran on. */
	since[unknown < SHORT_LEAD_NS ? EBT_ON_CPU : EBT_OTHER] += unknown;
	/* They may wrap around below zero: only differences count. */
	for (int cause = 0; cause < EBT_CAUSES; cause++) {
		account.times[cause] -= since[cause];
		account.own[cause] -= since[cause];
	}
	if (!self.open) {
		self.open = malloc(sizeof(*self.open));
		if (!self.open) {
			contexts_close(account.context, account.epoch);
			PyErr_NoMemory();
			return -1;
		}
		self.open->count = 0;
	}
	accounts_add(self.open, span_id, &account);
	return 0;
}

PyObject *breakdown_begin(PyObject *Py_UNUSED(module), PyObject *span)
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
static int parts_store(PyObject *attributes, const __u64 parts[EBT_CAUSES], __u64 suspended,
		       __u64 lost)
{
	PyObject *dict = PyObject_GetAttr(attributes, state.dict_attr);
	Py_ssize_t count = (lost != 0) + (suspended != 0);
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
	if (verdict == MEASURED && suspended && set_number(dict, state.suspended_key, suspended))
		verdict = -1;
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

/*
 * The parts of a span whose thread ran other contexts too: its own context's
 * alone, and the rest.  False when a switch was missed, or another context runs.
 */
static bool parts_of_context(const struct account *before, const struct account *now,
			     __u64 parts[EBT_CAUSES], __u64 *suspended)
{
	__u64 own[EBT_CAUSES], all = 0, used = 0;

	if (!before->context || now->missed != before->missed ||
	    !contexts_read(PyThreadState_Get(), before->context, now->times, own))
		return false;
	for (int cause = 0; cause < EBT_CAUSES; cause++) {
		all += parts[cause];
		parts[cause] = own[cause] - before->own[cause];
		used += parts[cause];
	}
	*suspended = all > used ? all - used : 0;
	return true;
}

/* Measure a span against its account, which is this thread's. */
static int account_settle(PyObject *span, PyObject *attributes, PyObject *ask_shared,
			  const struct account *before)
{
	__u64 parts[EBT_CAUSES], since[EBT_CAUSES], unknown, suspended = 0;
	PyObject *ended_ns = PyObject_GetAttr(span, state.end_time_attr);
	struct account now = { 0 };
	int shared = 0;
	bool mine;

	if (!ended_ns)
		return -1;
	mine = account_read(&now, ended_ns, since, &unknown);
	Py_DECREF(ended_ns);
	if (!mine || now.generation != before->generation || now.epoch != before->epoch)
		return ANOTHER_THREAD;
	for (int cause = 0; cause < EBT_CAUSES; cause++)
		parts[cause] = now.times[cause] - before->times[cause];
	if (now.stamp != before->stamp)
		shared = thread_shared(ask_shared);
	if (shared < 0)
		return -1;
	if (shared && !parts_of_context(before, &now, parts, &suspended))
		return SHARED_THREAD;
	parts_cut(parts, since, unknown);
	return parts_store(attributes, parts, suspended, now.lost - before->lost);
}

static int account_close(PyObject *span, PyObject *attributes, PyObject *ask_shared)
{
	struct account before;
	__u64 span_id;
	int verdict = ANOTHER_THREAD;

	if (span_id_of(span, &span_id))
		return -1;
	if (!accounts_take(self.open, span_id, &before))
		return ANOTHER_THREAD;
	/* epoch and slot are the thread's identity; ask without claiming a slot for a stranger */
	if (table.slots && self.epoch == before.epoch && self.slot == before.slot)
		verdict = account_settle(span, attributes, ask_shared, &before);
	contexts_close(before.context, before.epoch);
	return verdict;
}

PyObject *breakdown_end(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
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
