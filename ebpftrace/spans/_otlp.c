/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The encoder: from batches of raw records to OTLP protobuf.
 *
 * A record costs no Python object.  What C cannot read by itself it asks
 * Python for, once for each distinct value of a field.
 */
#include "_otlp.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define RECORD_HEAD 8 /* { u32 ring, u32 size }, see kernel/_reader.h */
#define MAX_RINGS (1024 * 1024) /* numbers are not used again after a reload */
#define CHUNK_BYTES (1024 * 1024)

/* --- random ids ----------------------------------------------------------- */

static int seed(struct encoder *encoder)
{
	do {
		if (getrandom(encoder->random, sizeof(encoder->random), 0) !=
		    sizeof(encoder->random)) {
			PyErr_SetFromErrno(PyExc_OSError);
			return -1;
		}
	} while (!(encoder->random[0] | encoder->random[1])); /* not all zero */
	encoder->pid = getpid();
	return 0;
}

static uint64_t rotate(uint64_t word, int bits)
{
	return word << bits | word >> (64 - bits);
}

/* xoshiro256**, by Blackman and Vigna; never 0, which is no id. */
uint64_t random_id(struct encoder *encoder)
{
	uint64_t *state = encoder->random, id;

	do {
		uint64_t shifted = state[1] << 17;

		id = rotate(state[1] * 5, 7) * 9;
		state[2] ^= state[0];
		state[3] ^= state[1];
		state[1] ^= state[2];
		state[0] ^= state[3];
		state[2] ^= shifted;
		state[3] = rotate(state[3], 45);
	} while (!id);
	return id;
}

/* --- chunks --------------------------------------------------------------- */

/* Move what is in a chunk to the closed ones; the chunk is empty then. */
static int chunk_close(struct encoder *encoder, struct chunk *chunk)
{
	PyObject *closed;
	int error;

	if (!chunk->count)
		return 0;
	closed = Py_BuildValue("(s#Oy#n)", (const char *)chunk->service.data,
			       (Py_ssize_t)chunk->service.used, chunk->program,
			       (const char *)chunk->spans.data, (Py_ssize_t)chunk->spans.used,
			       (Py_ssize_t)chunk->count);
	if (!closed)
		return -1;
	error = PyList_Append(encoder->closed, closed);
	Py_DECREF(closed);
	if (!error) {
		chunk->spans.used = 0;
		chunk->count = 0;
	}
	return error;
}

static int chunks_close(struct encoder *encoder)
{
	for (size_t i = 0; i < encoder->chunk_count; i++)
		if (chunk_close(encoder, &encoder->chunks[i]))
			return -1;
	return 0;
}

static void chunks_free(struct encoder *encoder)
{
	while (encoder->chunk_count) {
		struct chunk *chunk = &encoder->chunks[--encoder->chunk_count];

		buffer_free(&chunk->service);
		buffer_free(&chunk->spans);
		Py_CLEAR(chunk->program);
	}
}

static bool chunk_is(const struct chunk *chunk, struct bytes service, const PyObject *program)
{
	return chunk->program == program && chunk->service.used == service.size &&
	       !memcmp(chunk->service.data, service.data, service.size);
}

static struct chunk *chunk_new(struct encoder *encoder, struct bytes service, PyObject *program)
{
	struct chunk *chunk;

	if (encoder->chunk_count == MAX_CHUNKS) {
		if (chunks_close(encoder))
			return NULL;
		chunks_free(encoder);
	}
	chunk = &encoder->chunks[encoder->chunk_count];
	memset(chunk, 0, sizeof(*chunk));
	if (buffer_room(&chunk->service, service.size + 1)) /* never NULL, even when empty */
		return NULL;
	memcpy(chunk->service.data, service.data, service.size);
	chunk->service.used = service.size;
	chunk->program = Py_NewRef(program);
	encoder->chunk_count++;
	return chunk;
}

static struct chunk *chunk_find(struct encoder *encoder, struct bytes service, PyObject *program)
{
	if (encoder->last_chunk < encoder->chunk_count &&
	    chunk_is(&encoder->chunks[encoder->last_chunk], service, program))
		return &encoder->chunks[encoder->last_chunk];
	for (size_t i = 0; i < encoder->chunk_count; i++) {
		if (chunk_is(&encoder->chunks[i], service, program)) {
			encoder->last_chunk = i;
			return &encoder->chunks[i];
		}
	}
	return chunk_new(encoder, service, program);
}

struct chunk *chunk_for(struct encoder *encoder, struct bytes service, PyObject *program,
			size_t size)
{
	struct chunk *chunk = chunk_find(encoder, service, program);

	if (!chunk)
		return NULL;
	if (chunk->spans.used + size > encoder->chunk_bytes && chunk_close(encoder, chunk))
		return NULL;
	return buffer_room(&chunk->spans, size) ? NULL : chunk;
}

/* --- batches -------------------------------------------------------------- */

static const struct layout *layout_of(const struct ring *ring, const uint8_t *record, size_t size,
				      bool *too_short)
{
	uint32_t type;

	*too_short = false;
	for (size_t i = 0; i < ring->count; i++) {
		const struct layout *layout = &ring->layouts[i];

		if (!layout->any_type) {
			if (size < sizeof(type) || layout->type_offset > size - sizeof(type)) {
				*too_short = true;
				continue;
			}
			memcpy(&type, record + layout->type_offset, sizeof(type));
			if (type != layout->type)
				continue;
		}
		*too_short = size < layout->size;
		return *too_short ? NULL : layout;
	}
	return NULL;
}

static int feed_record(struct encoder *encoder, struct ring *ring, const uint8_t *record,
		       size_t size)
{
	bool too_short;
	const struct layout *layout = layout_of(ring, record, size, &too_short);

	ring->counts.records++;
	if (!layout) {
		ring->counts.too_short += too_short;
		ring->counts.unknown_type += !too_short;
		return 0;
	}
	switch (record_encode(encoder, layout, record)) {
	case NO_TRACE_ID:
		ring->counts.no_trace_id++;
		return 0;
	case SKIPPED:
		ring->counts.skipped++;
		return 0;
	case FAILED:
		ring->counts.failed++;
		return 0;
	case BROKEN:
		return -1;
	default:
		return 0;
	}
}

static int feed_batch(struct encoder *encoder, const uint8_t *data, size_t size)
{
	while (size) {
		uint32_t head[2];
		size_t whole;

		if (size >= RECORD_HEAD)
			memcpy(head, data, RECORD_HEAD);
		whole = size < RECORD_HEAD ? SIZE_MAX :
					     RECORD_HEAD + (((size_t)head[1] + 7) & ~(size_t)7);
		if (whole > size) {
			PyErr_SetString(PyExc_ValueError, "the batch ends within a record");
			return -1;
		}
		if (head[0] >= encoder->ring_count || !encoder->rings[head[0]].layouts)
			encoder->stray++;
		else if (feed_record(encoder, &encoder->rings[head[0]], data + RECORD_HEAD,
				     head[1]))
			return -1;
		data += whole;
		size -= whole;
	}
	return 0;
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (uint64_t)time.tv_sec * 1000000000ULL + (uint64_t)time.tv_nsec;
}

/* --- the Python type ------------------------------------------------------ */

/* convert() and the destructors of what set_ring() drops may come back here, or let another thread come. */
static int take_it(struct encoder *encoder)
{
	if (encoder->busy) {
		PyErr_SetString(PyExc_RuntimeError, "the encoder is in use");
		return -1;
	}
	encoder->busy = true;
	return 0;
}

static PyObject *encoder_feed(struct encoder *self, PyObject *args)
{
	Py_buffer data;
	long long offset_ns;
	int error;

	if (!PyArg_ParseTuple(args, "y*L", &data, &offset_ns))
		return NULL;
	error = take_it(self);
	if (!error) {
		/* a forked child must not go on with its parent's ids */
		error = self->pid == getpid() ? 0 : seed(self);
		self->offset_ns = offset_ns;
		self->now_ns = clock_ns(CLOCK_MONOTONIC);
		self->epoch_ns = clock_ns(CLOCK_REALTIME);
		if (!error)
			error = feed_batch(self, data.buf, (size_t)data.len);
		self->busy = false;
	}
	PyBuffer_Release(&data);
	if (error)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *encoder_take(struct encoder *self, PyObject *unused)
{
	PyObject *fresh, *closed;

	(void)unused;
	if (take_it(self))
		return NULL;
	fresh = PyList_New(0);
	if (!fresh || chunks_close(self)) {
		self->busy = false;
		Py_XDECREF(fresh);
		return NULL;
	}
	closed = self->closed;
	self->closed = fresh;
	self->busy = false;
	return closed;
}

static int grow_rings(struct encoder *self, size_t count)
{
	struct ring *grown;

	if (count <= self->ring_count)
		return 0;
	grown = realloc(self->rings, count * sizeof(*grown));
	if (!grown) {
		PyErr_NoMemory();
		return -1;
	}
	memset(grown + self->ring_count, 0, (count - self->ring_count) * sizeof(*grown));
	self->rings = grown;
	self->ring_count = count;
	return 0;
}

static PyObject *encoder_set_ring(struct encoder *self, PyObject *args)
{
	struct ring ring = { 0 }, gone;
	unsigned int number;
	PyObject *layouts;

	if (!PyArg_ParseTuple(args, "IO", &number, &layouts))
		return NULL;
	if (number >= MAX_RINGS) {
		PyErr_SetString(PyExc_ValueError, "a ring's number is below 1048576");
		return NULL;
	}
	if (take_it(self))
		return NULL;
	if ((layouts != Py_None && ring_parse(&ring, layouts)) ||
	    grow_rings(self, (size_t)number + 1)) {
		self->busy = false;
		ring_free(&ring);
		return NULL;
	}
	gone = self->rings[number];
	self->rings[number] = ring;
	self->busy = false;
	ring_free(&gone);
	Py_RETURN_NONE;
}

static PyObject *encoder_counts(struct encoder *self, PyObject *args)
{
	struct counts counts = { 0 };
	unsigned int number;

	if (!PyArg_ParseTuple(args, "I", &number))
		return NULL;
	if (number < self->ring_count)
		counts = self->rings[number].counts;
	return Py_BuildValue("{sKsKsKsKsKsK}", "records", (unsigned long long)counts.records,
			     "short", (unsigned long long)counts.too_short, "unknown_type",
			     (unsigned long long)counts.unknown_type, "no_trace_id",
			     (unsigned long long)counts.no_trace_id, "skipped",
			     (unsigned long long)counts.skipped, "failed",
			     (unsigned long long)counts.failed);
}

static PyObject *encoder_stray(struct encoder *self, void *unused)
{
	(void)unused;
	return PyLong_FromUnsignedLongLong(self->stray);
}

static PyObject *encoder_pending(struct encoder *self, void *unused)
{
	size_t pending = 0;

	(void)unused;
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(self->closed); i++)
		pending += (size_t)PyBytes_GET_SIZE(
			PyTuple_GET_ITEM(PyList_GET_ITEM(self->closed, i), 2));
	for (size_t i = 0; i < self->chunk_count; i++)
		pending += self->chunks[i].spans.used;
	return PyLong_FromSize_t(pending);
}

static PyObject *encoder_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	static char *names[] = { "chunk_bytes", NULL };
	Py_ssize_t chunk_bytes = CHUNK_BYTES;
	struct encoder *self;

	if (!PyArg_ParseTupleAndKeywords(args, keywords, "|n", names, &chunk_bytes))
		return NULL;
	if (chunk_bytes <= 0) {
		PyErr_SetString(PyExc_ValueError, "chunk_bytes must be above 0");
		return NULL;
	}
	self = (struct encoder *)type->tp_alloc(type, 0); /* all zero */
	if (!self)
		return NULL;
	self->chunk_bytes = (size_t)chunk_bytes;
	self->closed = PyList_New(0);
	if (!self->closed || seed(self)) {
		Py_DECREF(self);
		return NULL;
	}
	self->seed = random_id(self);
	return (PyObject *)self;
}

static int encoder_traverse(struct encoder *self, visitproc visit, void *arg)
{
	Py_VISIT(self->closed);
	for (size_t i = 0; i < self->ring_count; i++) {
		int stop = ring_visit(&self->rings[i], visit, arg);

		if (stop)
			return stop;
	}
	return 0;
}

static int encoder_clear(struct encoder *self)
{
	while (self->ring_count)
		ring_free(&self->rings[--self->ring_count]);
	return 0;
}

static void encoder_dealloc(struct encoder *self)
{
	PyObject_GC_UnTrack(self);
	encoder_clear(self);
	chunks_free(self);
	Py_CLEAR(self->closed);
	buffer_free(&self->attributes);
	buffer_free(&self->events);
	buffer_free(&self->links);
	free(self->rings);
	Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef encoder_methods[] = {
	{ "feed", (PyCFunction)encoder_feed, METH_VARARGS,
	  "feed(data, offset_ns)\n--\n\nEncode the records of a batch; `offset_ns` is from kernel to wall time." },
	{ "take", (PyCFunction)encoder_take, METH_NOARGS,
	  "take()\n--\n\nReturn all there is as (service, program, payload, count), and forget it." },
	{ "set_ring", (PyCFunction)encoder_set_ring, METH_VARARGS,
	  "set_ring(number, layouts)\n--\n\nSay what a ring's records are (None: it is gone); its counts start anew." },
	{ "counts", (PyCFunction)encoder_counts, METH_VARARGS,
	  "counts(number)\n--\n\nReturn a ring's records, and those that made no span by reason." },
	{ NULL },
};

static PyGetSetDef encoder_attributes[] = {
	{ "pending", (getter)encoder_pending, NULL, "Bytes that take() would return.", NULL },
	{ "stray", (getter)encoder_stray, NULL, "Records of rings that nobody described.", NULL },
	{ NULL },
};

static PyTypeObject encoder_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "ebpftrace.spans._otlp.Encoder",
	.tp_doc =
		"Encoder(chunk_bytes=1048576)\n--\n\nRecords in, OTLP spans out; for one thread at a time.",
	.tp_basicsize = sizeof(struct encoder),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
	.tp_new = encoder_new,
	.tp_dealloc = (destructor)encoder_dealloc,
	.tp_traverse = (traverseproc)encoder_traverse,
	.tp_clear = (inquiry)encoder_clear,
	.tp_methods = encoder_methods,
	.tp_getset = encoder_attributes,
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_otlp",
	.m_doc = "Records to OTLP protobuf.",
	.m_size = -1,
};

PyMODINIT_FUNC PyInit__otlp(void)
{
	PyObject *made = PyModule_Create(&module);

	if (made && PyModule_AddType(made, &encoder_type)) {
		Py_DECREF(made);
		return NULL;
	}
	if (made && (PyModule_AddIntConstant(made, "SKIPPED", SKIPPED) ||
		     PyModule_AddIntConstant(made, "FAILED", FAILED))) {
		Py_DECREF(made);
		return NULL;
	}
	return made;
}
