/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For readers that know OpenTelemetry and not us, such as its eBPF profiler:
 * the process context of OTEP 4719, and the thread-local symbol of OTEP 4947
 * that leads to the calling thread's slot, whose first 28 bytes are a thread
 * context record.
 *
 * Such readers look for the symbol once the process context speaks of it, so
 * threads are given the pointer only while that is published.
 */
#define _GNU_SOURCE /* memfd_create */
#include "_publisher.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

/* newer than the headers that we may be built with */
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#define CONTEXT_NAME "OTEL_CTX"
#define CONTEXT_VERSION 2

/* --- the thread's pointer -------------------------------------------------- */

/* The one symbol that this module exports besides its initialiser; the name is the OTEP's. */
__attribute__((visibility("default"),
	       tls_model("global-dynamic"))) _Thread_local void *otel_thread_ctx_v1;

/* A thread whose pointer is set: whoever unmaps the table clears them all. */
struct pointing {
	void **pointer;
	struct pointing *next, **link; /* where this is linked from; NULL: nowhere */
};

static _Thread_local struct pointing mine __attribute__((tls_model("initial-exec")));
static struct pointing *pointings;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/*
 * Never inlined: glibc before 2.40 may clobber vector registers in a TLS
 * descriptor's first use in a thread (BZ#31372), which a call of a function
 * expects anyway.
 */
static __attribute__((noinline, noclone)) void **thread_pointer(void)
{
	return &otel_thread_ctx_v1;
}

/* With the lock held. */
static void clear(struct pointing *pointing)
{
	__atomic_store_n(pointing->pointer, NULL, __ATOMIC_RELAXED);
	*pointing->link = pointing->next;
	if (pointing->next)
		pointing->next->link = pointing->link;
	pointing->link = NULL;
}

/* --- the process context ----------------------------------------------------- */

struct process_header {
	char signature[8];
	__u32 version;
	__u32 payload_size;
	__u64 published_ns; /* CLOCK_BOOTTIME; 0 = being changed */
	__u64 payload;
};
_Static_assert(sizeof(struct process_header) == 32, "as OTEP 4719 has it");

static struct {
	struct process_header *header; /* in a mapping of its own; NULL: not published */
	void *payload;
} process;

static size_t mapping_size(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

static void *map_named(bool *named)
{
	int fd = memfd_create(CONTEXT_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	void *mapping = MAP_FAILED;

	if (fd < 0) /* before Linux 6.3 */
		fd = memfd_create(CONTEXT_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd >= 0 && ftruncate(fd, (off_t)mapping_size()) == 0)
		mapping = mmap(NULL, mapping_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (fd >= 0)
		close(fd);
	*named = mapping != MAP_FAILED;
	if (!*named)
		mapping = mmap(NULL, mapping_size(), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return mapping;
}

/* Done at every update, whether or not it can succeed: readers may watch for the call itself. */
static bool name_mapping(void)
{
	return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, process.header, mapping_size(),
		     CONTEXT_NAME) == 0;
}

/* The order of the stores is the protocol: a reader that sees the same time before and after has it whole. */
static void write_header(void *payload, size_t size)
{
	static __u64 last_ns;
	struct process_header *header = process.header;
	__u64 now = clock_ns(CLOCK_BOOTTIME);

	__atomic_store_n(&header->published_ns, 0, __ATOMIC_RELAXED);
	atomic_thread_fence(memory_order_seq_cst);
	memcpy(header->signature, CONTEXT_NAME, sizeof(header->signature));
	header->version = CONTEXT_VERSION;
	header->payload_size = (__u32)size;
	header->payload = (__u64)(uintptr_t)payload;
	atomic_thread_fence(memory_order_seq_cst);
	last_ns = now > last_ns ? now : last_ns + 1;
	__atomic_store_n(&header->published_ns, last_ns, __ATOMIC_RELAXED);
}

static int first_publish(void *payload, size_t size)
{
	bool named;
	void *mapping = map_named(&named);

	if (mapping == MAP_FAILED)
		return -1;
	if (madvise(mapping, mapping_size(), MADV_DONTFORK) == 0) {
		process.header = mapping;
		*table.here = 1;
		write_header(payload, size);
		if (name_mapping() || named)
			return 0;
		process.header = NULL;
	}
	munmap(mapping, mapping_size());
	return -1;
}

PyObject *otel_publish(PyObject *Py_UNUSED(module), PyObject *arg)
{
	void *payload;
	size_t size;

	if (!PyBytes_Check(arg)) {
		PyErr_SetString(PyExc_TypeError, "the payload must be bytes");
		return NULL;
	}
	table_check();
	size = (size_t)PyBytes_GET_SIZE(arg);
	payload = PyMem_RawMalloc(size);
	if (!payload)
		return PyErr_NoMemory();
	memcpy(payload, PyBytes_AS_STRING(arg), size);
	if (process.header) {
		write_header(payload, size);
		name_mapping();
	} else if (first_publish(payload, size)) {
		PyMem_RawFree(payload);
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	PyMem_RawFree(process.payload);
	process.payload = payload;
	Py_RETURN_NONE;
}

PyObject *otel_withdraw(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	table_check();
	otel_unpoint_all();
	if (process.header)
		munmap(process.header, mapping_size());
	process.header = NULL;
	PyMem_RawFree(process.payload);
	process.payload = NULL;
	Py_RETURN_NONE;
}

PyObject *otel_address(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	table_check();
	return PyLong_FromVoidPtr(process.header);
}

/* --- called as slots come and go ------------------------------------------------ */

void otel_point(struct ebt_slot *slot)
{
	if (!process.header)
		return;
	pthread_mutex_lock(&lock);
	if (!mine.link) {
		mine.pointer = thread_pointer();
		mine.next = pointings;
		mine.link = &pointings;
		if (pointings)
			pointings->link = &mine.next;
		pointings = &mine;
	}
	__atomic_store_n(mine.pointer, slot, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&lock);
}

bool otel_published(void)
{
	return process.header != NULL;
}

void otel_unpoint(void)
{
	pthread_mutex_lock(&lock);
	if (mine.link)
		clear(&mine);
	pthread_mutex_unlock(&lock);
}

void otel_unpoint_all(void)
{
	pthread_mutex_lock(&lock);
	while (pointings)
		clear(pointings);
	pthread_mutex_unlock(&lock);
}

/* In the child of a fork: only this thread is here, and neither the table nor the process context. */
void otel_forget(void)
{
	pthread_mutex_init(&lock, NULL); /* the thread that held it is not here */
	if (mine.link)
		*mine.pointer = NULL;
	mine.link = NULL;
	pointings = NULL;
	process.header = NULL;
	/* freed by nobody: the thread that forked may have been in malloc() */
	process.payload = NULL;
}
