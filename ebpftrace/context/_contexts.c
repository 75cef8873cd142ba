/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each contextvars.Context has used of its thread's time, for contexts that
 * take turns: the span of a coroutine or a greenlet is measured while its own
 * context is the current one.
 *
 * Noted are the contexts in which measured spans are open, and only on the
 * thread where these began.  At each switch the one that was current is given
 * what the thread's account has grown by since it took over.
 */
#include "_publisher.h"

#include <stdlib.h>

#define NONE OPEN_SPANS /* more contexts than open spans there cannot be */
#define BUCKETS 256

struct used {
	PyObject *context; /* referred to, so that no other one gets its address */
	unsigned int spans; /* open in it */
	unsigned int next; /* in its bucket, or in the list of free ones */
	__u64 times[EBT_CAUSES]; /* up to the last time it was left */
};

struct contexts {
	struct contexts *orphan; /* the next one whose thread has ended */
	struct contexts *next; /* of all threads */
	unsigned int epoch; /* of the table that the times are counted in */
	unsigned int current; /* the one that runs, when it is noted; else NONE */
	unsigned int free;
	unsigned int buckets[BUCKETS];
	__u64 since[EBT_CAUSES]; /* the thread's account when `current` took over */
	struct used of[OPEN_SPANS];
};

static struct contexts *all; /* changed and read with the GIL held only */

/* Of threads that have ended: their references are dropped by whoever has the GIL next. */
static _Atomic(struct contexts *) orphans;

static unsigned int bucket_of(const PyObject *context)
{
	return (unsigned int)(((__u64)(uintptr_t)context * 0x9e3779b97f4a7c15ULL) >> 56) % BUCKETS;
}

static void contexts_reset(struct contexts *contexts)
{
	contexts->epoch = table.epoch;
	contexts->current = NONE;
	contexts->free = 0;
	for (unsigned int i = 0; i < BUCKETS; i++)
		contexts->buckets[i] = NONE;
	for (unsigned int i = 0; i < OPEN_SPANS; i++) {
		contexts->of[i].context = NULL;
		contexts->of[i].next = i + 1;
	}
}

/* Make it empty first: a context that goes may run code that comes here, or frees this. */
static void contexts_empty(struct contexts *contexts)
{
	PyObject *held[OPEN_SPANS];

	for (unsigned int i = 0; i < OPEN_SPANS; i++)
		held[i] = contexts->of[i].context;
	contexts_reset(contexts);
	for (unsigned int i = 0; i < OPEN_SPANS; i++)
		Py_XDECREF(held[i]);
}

/* The table has gone: no thread may come here again to let go of what it keeps. */
void contexts_empty_all(void)
{
	struct contexts *contexts = all;

	while (contexts) {
		if (contexts->epoch == table.epoch) {
			contexts = contexts->next;
		} else {
			contexts_empty(contexts);
			contexts = all;
		}
	}
}

static void contexts_unlink(const struct contexts *contexts)
{
	struct contexts **link = &all;

	while (*link != contexts)
		link = &(*link)->next;
	*link = contexts->next;
}

/* Without the GIL, at the end of a thread. */
void contexts_orphan(struct contexts *contexts)
{
	if (!contexts)
		return;
	contexts->orphan = atomic_load(&orphans);
	while (!atomic_compare_exchange_weak(&orphans, &contexts->orphan, contexts))
		;
}

static void orphans_drop(void)
{
	struct contexts *contexts = atomic_exchange(&orphans, NULL);

	while (contexts) {
		struct contexts *next = contexts->orphan;

		contexts_unlink(contexts);
		contexts_empty(contexts);
		free(contexts);
		contexts = next;
	}
}

/* The calling thread's, of the table that there is now; NULL when it has none. */
static struct contexts *contexts_mine(bool make)
{
	if (!self.contexts && make) {
		self.contexts = malloc(sizeof(*self.contexts));
		if (self.contexts) {
			contexts_reset(self.contexts);
			self.contexts->next = all;
			all = self.contexts;
		}
	} else if (self.contexts && self.contexts->epoch != table.epoch) {
		contexts_empty(self.contexts);
	}
	return self.contexts;
}

static unsigned int used_find(const struct contexts *contexts, const PyObject *context)
{
	unsigned int i = contexts->buckets[bucket_of(context)];

	while (i != NONE && contexts->of[i].context != context)
		i = contexts->of[i].next;
	return i;
}

static unsigned int used_add(struct contexts *contexts, PyObject *context)
{
	unsigned int *bucket = &contexts->buckets[bucket_of(context)], i = contexts->free;

	if (i == NONE)
		return NONE;
	contexts->free = contexts->of[i].next;
	contexts->of[i] = (struct used){ .context = Py_NewRef(context), .next = *bucket };
	*bucket = i;
	return i;
}

static void used_remove(struct contexts *contexts, unsigned int i)
{
	PyObject *context = contexts->of[i].context;
	unsigned int *link = &contexts->buckets[bucket_of(context)];

	while (*link != i)
		link = &contexts->of[*link].next;
	*link = contexts->of[i].next;
	contexts->of[i].context = NULL;
	contexts->of[i].next = contexts->free;
	contexts->free = i;
	if (contexts->current == i)
		contexts->current = NONE;
	Py_DECREF(context); /* last, for the same reason */
}

void contexts_switched(PyThreadState *thread)
{
	struct contexts *contexts = contexts_mine(false);
	unsigned int before, now;
	__u64 times[EBT_CAUSES];

	if (!contexts)
		return;
	before = contexts->current;
	now = thread->context ? used_find(contexts, thread->context) : NONE;
	if (before == now)
		return;
	contexts->current = NONE;
	if (!thread_times(times))
		return;
	for (int cause = 0; before != NONE && cause < EBT_CAUSES; cause++)
		contexts->of[before].times[cause] += times[cause] - contexts->since[cause];
	memcpy(contexts->since, times, sizeof(times));
	contexts->current = now;
}

static void used_read(const struct contexts *contexts, unsigned int i,
		      const __u64 times[EBT_CAUSES], __u64 own[EBT_CAUSES])
{
	for (int cause = 0; cause < EBT_CAUSES; cause++)
		own[cause] = contexts->of[i].times[cause] + times[cause] - contexts->since[cause];
}

PyObject *contexts_open(PyThreadState *thread, const __u64 times[EBT_CAUSES], __u64 own[EBT_CAUSES])
{
	struct contexts *contexts;
	unsigned int i;

	if (!switches_follow_thread(thread) || !context_exists(thread))
		return NULL;
	orphans_drop();
	contexts = contexts_mine(true);
	if (!contexts)
		return NULL;
	i = used_find(contexts, thread->context);
	if (i == NONE)
		i = used_add(contexts, thread->context);
	if (i == NONE)
		return NULL;
	if (contexts->current != i) {
		memcpy(contexts->since, times, sizeof(contexts->since));
		contexts->current = i;
	}
	contexts->of[i].spans++;
	used_read(contexts, i, times, own);
	return thread->context;
}

bool contexts_read(const PyThreadState *thread, const PyObject *context,
		   const __u64 times[EBT_CAUSES], __u64 own[EBT_CAUSES])
{
	struct contexts *contexts = contexts_mine(false);
	unsigned int i = contexts ? used_find(contexts, context) : NONE;

	if (i == NONE || contexts->current != i || thread->context != context)
		return false;
	used_read(contexts, i, times, own);
	return true;
}

void contexts_close(const PyObject *context, unsigned int epoch)
{
	struct contexts *contexts = contexts_mine(false);
	bool noted = contexts && context && epoch == table.epoch;
	unsigned int i = noted ? used_find(contexts, context) : NONE;

	if (i != NONE && --contexts->of[i].spans == 0)
		used_remove(contexts, i);
}
