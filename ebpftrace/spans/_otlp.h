/* SPDX-License-Identifier: Apache-2.0 */
/* Records to OTLP protobuf: what the files of the extension `_otlp` share. */
#ifndef EBPFTRACE_OTLP_H
#define EBPFTRACE_OTLP_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

/* --- bytes in the making -------------------------------------------------- */

struct buffer {
	uint8_t *data;
	size_t used, capacity;
};

/* Make room for `size` bytes more.  0, or -1 with MemoryError. */
int buffer_room(struct buffer *buffer, size_t size);
void buffer_free(struct buffer *buffer);

struct bytes {
	const uint8_t *data;
	size_t size;
};

/* --- what is remembered of a column's values ------------------------------ */

/* What became of a record, or of a field of it. */
enum outcome {
	FOUND,
	NOTHING,
	NO_TRACE_ID,
	SKIPPED,
	FAILED,
	BROKEN /* a Python exception is set */
};

struct entry {
	uint64_t expires_ns; /* 0: never */
	uint32_t size; /* of the value */
	uint8_t outcome; /* FOUND, NOTHING, SKIPPED or FAILED */
	uint8_t bytes[]; /* the key, then the value */
};

#define WAYS 4

struct slot {
	uint64_t hash;
	struct entry *entry;
};

/* From a field's bytes to what Python makes of them; bounded, any entry may go at any time. */
struct cache {
	struct slot *slots; /* sets of WAYS; NULL until the first value */
	size_t bytes; /* of all entries */
	unsigned int victim;
};

uint64_t cache_hash(const uint8_t *key, size_t size, uint64_t seed);
const struct entry *cache_find(const struct cache *cache, uint64_t hash, const uint8_t *key,
			       size_t size, uint64_t now_ns);
/* Takes `entry` over; it is there until the next cache_put(). 0, or -1 with MemoryError. */
int cache_put(struct cache *cache, uint64_t hash, struct entry *entry, size_t key_size);
void cache_free(struct cache *cache);

/* --- layouts -------------------------------------------------------------- */

/* What a column is; names in _otlp_layout.c. */
enum role {
	ATTRIBUTE,
	TRACE_ID,
	SPAN_ID,
	PARENT_SPAN_ID,
	START,
	DURATION,
	SPAN_NAME,
	KIND,
	STATUS,
	ERROR_TEXT,
	SERVICE,
	LINK_TRACE_ID,
	LINK_SPAN_ID,
	EVENT,
	ROLES
};

/* How its bytes are read: here, or by a call of `convert` for each distinct value. */
enum op { CALL, UINT, SINT, BOOL, FLOAT, TEXT, HEX, BYTES, OPS };

struct column {
	enum role role;
	enum op op;
	uint32_t offset, size;
	struct bytes prefix; /* of an attribute or event: its encoded key or name */
	struct bytes omit; /* these bytes mean nothing; size 0: none do */
	int key; /* number of a key that others of the layout have too, or -1 */
	bool lasting; /* convert() says the same tomorrow */
	PyObject *convert; /* NULL unless CALL */
	PyObject *held; /* the tuple that `prefix` and `omit` lie in */
	struct cache cache;
};

/* An attribute that all spans of a layout have, unless a column says otherwise. */
struct fallback {
	int key;
	struct bytes attribute;
};

struct layout {
	bool any_type;
	uint32_t type, type_offset, size;
	PyObject *program; /* interned */
	struct bytes name, service, attributes;
	uint8_t kind;
	bool has_trace_id, has_shared_keys;
	struct column *columns;
	size_t column_count;
	struct fallback *fallbacks;
	size_t fallback_count;
	PyObject *held; /* the tuple that all bytes lie in */
};

/* Keys of one layout that several columns share. */
#define MAX_KEYS 256

struct counts {
	uint64_t records, too_short, unknown_type, no_trace_id, skipped, failed;
};

struct ring {
	struct layout *layouts;
	size_t count;
	struct counts counts;
};

/* Fill `ring` from a sequence of what native.py describes.  0, or -1 with an exception and `ring` empty. */
int ring_parse(struct ring *ring, PyObject *layouts);
int ring_visit(struct ring *ring, visitproc visit, void *arg);
void ring_free(struct ring *ring);

/* --- one field ------------------------------------------------------------ */

struct encoder;

uint64_t load_uint(const uint8_t *from, uint32_t size);
int64_t load_sint(const uint8_t *from, uint32_t size);
/*
 * The text up to the first NUL, as UTF-8.  What is not ASCII is looked at by
 * Python, so that invalid bytes are replaced exactly as its decoders do it;
 * `held` is then what the text lies in.  0, or -1 with an exception.
 */
int load_text(const uint8_t *from, uint32_t size, struct bytes *text, PyObject **held);
/* The value of a CALL column; it lies in the column's cache until its next value is asked for. */
enum outcome recall(struct encoder *encoder, struct column *column, const uint8_t *from,
		    struct bytes *value);
enum outcome add_attribute(struct encoder *encoder, struct column *column, const uint8_t *from);

/* --- one record ----------------------------------------------------------- */

/* The spans of one service and program. */
struct chunk {
	PyObject *program;
	struct buffer service, spans;
	size_t count;
};

/* Services may come from records: chunks of more than these are closed. */
#define MAX_CHUNKS 16

struct encoder {
	PyObject_HEAD
	struct ring *rings;
	size_t ring_count;
	struct chunk chunks[MAX_CHUNKS];
	size_t chunk_count, last_chunk;
	size_t chunk_bytes;
	PyObject *closed; /* list of (service, program, payload, count) */
	struct buffer attributes, events, links; /* of the record in hand */
	uint8_t taken[MAX_KEYS]; /* keys that the record in hand has already */
	uint64_t random[4], seed;
	uint64_t stray; /* records of rings that are not there */
	pid_t pid; /* that `random` was seeded in */
	uint64_t now_ns, epoch_ns; /* of this batch: monotonic; wall time */
	int64_t offset_ns;
	bool busy;
};

/* Append the span of one record to its chunk. */
enum outcome record_encode(struct encoder *encoder, const struct layout *layout,
			   const uint8_t *record);
/* The chunk of a service and program, with room for `size` bytes.  NULL with an exception. */
struct chunk *chunk_for(struct encoder *encoder, struct bytes service, PyObject *program,
			size_t size);
uint64_t random_id(struct encoder *encoder);

#endif
