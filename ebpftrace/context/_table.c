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

void table_check(void)
{
	if ((table.slots || otel_published()) && !*table.here)
		table_forget();
}

/* By its own thread, in a table that stays mapped meanwhile. */
static void slot_give_back(struct ebt_slot *slot)
{
	slot->valid = 0;
	slot->mask = 0;
	atomic_signal_fence(memory_order_seq_cst);
	__atomic_store_n(&slot->tid, EBT_TID_GONE, __ATOMIC_RELEASE);
	__atomic_fetch_add(&releases, 1, __ATOMIC_RELEASE);
}

static struct ebt_slot *slot_at(__u32 home, unsigned int probe)
{
	return &table.slots[(home + probe) & (EBT_TABLE_SLOTS - 1)];
}

/* Give back what is under this thread's id, from probe number `first` on: slots outlive a table that is mapped again. */
static void slots_give_back(__u32 tid, unsigned int first)
{
	for (unsigned int probe = first; probe < EBT_TABLE_PROBES; probe++) {
		struct ebt_slot *slot = slot_at(ebt_slot_home(tid), probe);

		if (__atomic_load_n(&slot->tid, __ATOMIC_ACQUIRE) == tid)
			slot_give_back(slot);
	}
}

static void slot_release(void *arg)
{
	struct ebt_slot *slot = arg;

	table_check();
	otel_unpoint();
	pthread_mutex_lock(&table_lock);
	if (table.epoch && self.epoch != table.epoch)
		slots_give_back((__u32)gettid(), 0);
	else if (table.epoch && self.slot == slot)
		slot_give_back(slot);
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

	table_check();
	if (!table.slots || table_full(released))
		return NULL;
	tid = (__u32)gettid();
	home = ebt_slot_home(tid);
	for (unsigned int probe = 0; probe < EBT_TABLE_PROBES; probe++) {
		struct ebt_slot *slot = slot_at(home, probe);
		__u32 owner = __atomic_load_n(&slot->tid, __ATOMIC_ACQUIRE);

		/* our own tid: a thread that ended without telling had it before us */
		if ((owner == 0 || owner == EBT_TID_GONE || owner == tid) &&
		    slot_take(slot, owner, tid)) {
			self.slot = slot;
			self.epoch = table.epoch;
			pthread_setspecific(exit_key, slot);
			otel_point(slot);
			slots_give_back(tid, probe + 1); /* which no program would find any more */
			return slot;
		}
	}
	if (self.full_epoch != table.epoch)
		counters.no_slot++;
	self.full_epoch = table.epoch;
	self.full_releases = released;
	return NULL;
}

/* What is mapped of a table. */
struct mapped {
	struct ebt_slot *slots;
	const struct ebt_line *lines;
};

#define SLOTS_SIZE (sizeof(struct ebt_slot) * EBT_TABLE_SLOTS)
#define LINES_SIZE (sizeof(struct ebt_line) * EBT_TABLE_SLOTS)

/* From the arguments of arm() and rearm(); false with an exception. */
static bool mapped_open(struct mapped *mapped, long long *clock_offset, PyObject *args)
{
	void *slots, *lines;
	int slots_fd, lines_fd;

	*clock_offset = 0;
	if (!PyArg_ParseTuple(args, "ii|L", &slots_fd, &lines_fd, clock_offset))
		return false;
	slots = mmap(NULL, SLOTS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, slots_fd, 0);
	if (slots == MAP_FAILED) {
		PyErr_SetFromErrno(PyExc_OSError);
		return false;
	}
	lines = mmap(NULL, LINES_SIZE, PROT_READ, MAP_SHARED, lines_fd, 0);
	if (lines == MAP_FAILED || madvise(slots, SLOTS_SIZE, MADV_DONTFORK) ||
	    madvise(lines, LINES_SIZE, MADV_DONTFORK)) {
		PyErr_SetFromErrno(PyExc_OSError);
		munmap(slots, SLOTS_SIZE);
		if (lines != MAP_FAILED)
			munmap(lines, LINES_SIZE);
		return false;
	}
	*mapped = (struct mapped){ slots, lines };
	return true;
}

/* Programs may still look at the slots, and nobody will change them any more. */
static void slots_clear(struct ebt_slot *slots)
{
	for (unsigned int i = 0; i < EBT_TABLE_SLOTS; i++) {
		if (__atomic_load_n(&slots[i].tid, __ATOMIC_ACQUIRE))
			slots[i].valid = 0;
	}
}

void table_clear(void)
{
	table_check();
	pthread_mutex_lock(&table_lock);
	if (table.slots)
		slots_clear(table.slots);
	pthread_mutex_unlock(&table_lock);
}

/* Put another table in place, or none; `clear`: what threads have published in the one before is over. */
static void table_replace(struct mapped mapped, long long clock_offset, bool clear)
{
	struct mapped before;

	pthread_mutex_lock(&table_lock);
	before = (struct mapped){ table.slots, table.lines };
	if (before.slots && clear)
		slots_clear(before.slots);
	table.slots = mapped.slots;
	table.lines = mapped.lines;
	table.clock_offset = clock_offset;
	table.epoch = mapped.slots ? ++last_epoch : 0;
	table.interp = mapped.slots ? PyInterpreterState_Get() : NULL;
	if (mapped.slots)
		*table.here = 1;
	pthread_mutex_unlock(&table_lock);
	if (before.slots) {
		otel_unpoint_all();
		munmap(before.slots, SLOTS_SIZE);
		munmap((void *)before.lines, LINES_SIZE);
	}
	state.forked = false;
	contexts_empty_all();
}

PyObject *table_arm(PyObject *Py_UNUSED(module), PyObject *args)
{
	struct mapped mapped;
	long long clock_offset;

	table_check();
	if (table.slots) {
		PyErr_SetString(PyExc_RuntimeError,
				"the publisher has a context table already; disarm() it first");
		return NULL;
	}
	if (!mapped_open(&mapped, &clock_offset, args))
		return NULL;
	table_replace(mapped, clock_offset, false);
	Py_RETURN_NONE;
}

/* In one go: a thread that found no table in between would leave in the same slots what it published before. */
PyObject *table_rearm(PyObject *Py_UNUSED(module), PyObject *args)
{
	struct mapped mapped;
	long long clock_offset;

	table_check();
	if (!mapped_open(&mapped, &clock_offset, args))
		return NULL;
	table_replace(mapped, clock_offset, false);
	Py_RETURN_NONE;
}

PyObject *table_disarm(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	table_check();
	table_replace((struct mapped){ NULL, NULL }, table.clock_offset, true);
	Py_RETURN_NONE;
}

PyObject *table_armed(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyBool_FromLong(table.slots && !table_lost());
}

/* The table is the process's: is it there for another interpreter? */
PyObject *table_armed_elsewhere(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	table_check();
	return PyBool_FromLong(table.slots && table.interp != PyInterpreterState_Get());
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
