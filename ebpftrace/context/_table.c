/* SPDX-License-Identifier: Apache-2.0 */
/* The context table of this process, and the calling thread's slot in it. */
#define _GNU_SOURCE /* gettid */
#include "_publisher.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#define NSEC_PER_SEC 1000000000ULL

struct table table;
_Thread_local struct thread self __attribute__((tls_model("initial-exec")));

/* Keeps a mapping alive while the destructor of an ending thread uses it. */
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_key_t exit_key;
static unsigned int last_epoch;
static unsigned int releases; /* of slots; grows */

unsigned long long clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (unsigned long long)ts.tv_sec * NSEC_PER_SEC + (unsigned long long)ts.tv_nsec;
}

unsigned long long now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC) - (unsigned long long)table.clock_offset;
}

/*
 * In the child of a fork the mapping is gone (MADV_DONTFORK): forget it before anyone writes.  Called by pthread_atfork(),
 * and by who finds the table gone where that was not asked: after a bare clone(2).
 */
static void table_forget(void)
{
	pthread_mutex_init(&table_lock, NULL); /* the thread that held it is not here */
	table.slots = NULL;
	table.lines = NULL;
	table.epoch = 0;
	self.slot = NULL;
	otel_forget();
}

static bool table_lost(void)
{
	return table.slots && !*table.here;
}

static void slot_release(void *arg)
{
	struct ebt_slot *slot = arg;

	if (table_lost())
		table_forget();
	otel_unpoint();
	pthread_mutex_lock(&table_lock);
	if (table.epoch && self.epoch == table.epoch && self.slot == slot) {
		slot->valid = 0;
		slot->mask = 0;
		atomic_signal_fence(memory_order_seq_cst);
		__atomic_store_n(&slot->tid, EBT_TID_GONE, __ATOMIC_RELEASE);
		__atomic_fetch_add(&releases, 1, __ATOMIC_RELEASE);
	}
	self.slot = NULL;
	pthread_mutex_unlock(&table_lock);
	free(self.open);
	self.open = NULL;
	contexts_orphan(self.contexts);
	self.contexts = NULL;
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

/* Was there no room for this thread, and did no other give its slot back since? */
static bool table_full(unsigned int released)
{
	return self.full_epoch == table.epoch && self.full_releases == released;
}

/* A slot for this thread: once in its life, one gettid() and no bpf() call. */
struct ebt_slot *slot_claim(void)
{
	unsigned int released = __atomic_load_n(&releases, __ATOMIC_ACQUIRE);
	__u32 tid, home;

	if (table_lost())
		table_forget();
	if (!table.slots || table_full(released))
		return NULL;
	tid = (__u32)gettid();
	home = ebt_slot_home(tid);
	for (unsigned int probe = 0; probe < EBT_TABLE_PROBES; probe++) {
		struct ebt_slot *slot = &table.slots[(home + probe) & (EBT_TABLE_SLOTS - 1)];
		__u32 owner = __atomic_load_n(&slot->tid, __ATOMIC_ACQUIRE);

		/* our own tid: a thread that ended without telling had it before us */
		if ((owner == 0 || owner == EBT_TID_GONE || owner == tid) &&
		    slot_take(slot, owner, tid)) {
			self.slot = slot;
			self.epoch = table.epoch;
			pthread_setspecific(exit_key, slot);
			otel_point(slot);
			return slot;
		}
	}
	if (self.full_epoch != table.epoch)
		counters.no_slot++;
	self.full_epoch = table.epoch;
	self.full_releases = released;
	return NULL;
}

PyObject *table_arm(PyObject *Py_UNUSED(module), PyObject *args)
{
	size_t slots_size = sizeof(struct ebt_slot) * EBT_TABLE_SLOTS;
	size_t lines_size = sizeof(struct ebt_line) * EBT_TABLE_SLOTS;
	void *slots, *lines;
	long long clock_offset = 0;
	int slots_fd, lines_fd;

	if (!PyArg_ParseTuple(args, "ii|L", &slots_fd, &lines_fd, &clock_offset))
		return NULL;
	if (table_lost())
		table_forget();
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
	*table.here = 1;
	table.epoch = ++last_epoch;
	pthread_mutex_unlock(&table_lock);
	state.forked = false;
	Py_RETURN_NONE;
}

PyObject *table_disarm(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	struct ebt_slot *slots;
	const struct ebt_line *lines;

	if (table_lost())
		table_forget();
	pthread_mutex_lock(&table_lock);
	slots = table.slots;
	lines = table.lines;
	table.slots = NULL;
	table.lines = NULL;
	table.epoch = 0;
	pthread_mutex_unlock(&table_lock);
	if (slots) {
		otel_unpoint_all();
		munmap(slots, sizeof(*slots) * EBT_TABLE_SLOTS);
		munmap((void *)lines, sizeof(*lines) * EBT_TABLE_SLOTS);
	}
	state.forked = false;
	Py_RETURN_NONE;
}

PyObject *table_armed(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyBool_FromLong(table.slots && !table_lost());
}

/* The calling thread's slot as bytes, for tests and `doctor`; None when it has none. */
PyObject *table_slot_bytes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	if (!table.slots || table_lost() || self.epoch != table.epoch || !self.slot)
		Py_RETURN_NONE;
	return PyBytes_FromStringAndSize((char *)self.slot, sizeof(*self.slot));
}

/* A page that a fork wipes; on a kernel that cannot (before 4.14), one that it copies. */
static bool here_init(void)
{
	long size = sysconf(_SC_PAGESIZE);
	void *page = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);

	if (page == MAP_FAILED)
		return false;
	madvise(page, (size_t)size, MADV_WIPEONFORK);
	table.here = page;
	return true;
}

int table_init(void)
{
	return !here_init() || pthread_key_create(&exit_key, slot_release) ||
	       pthread_atfork(NULL, NULL, table_forget);
}
