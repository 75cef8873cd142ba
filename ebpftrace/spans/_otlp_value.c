/* SPDX-License-Identifier: Apache-2.0 */
/* Fields: reading them, asking Python about them, writing them as attributes. */
#include "_otlp_wire.h"

#include <stdlib.h>

#define SECOND_NS 1000000000ULL

/* --- reading -------------------------------------------------------------- */

uint64_t load_uint(const uint8_t *from, uint32_t size)
{
	uint64_t u64;
	uint32_t u32;
	uint16_t u16;

	switch (size) {
	case 1:
		return *from;
	case 2:
		memcpy(&u16, from, 2);
		return u16;
	case 4:
		memcpy(&u32, from, 4);
		return u32;
	default:
		memcpy(&u64, from, 8);
		return u64;
	}
}

int64_t load_sint(const uint8_t *from, uint32_t size)
{
	unsigned int shift = 64 - 8 * size;

	return (int64_t)(load_uint(from, size) << shift) >> shift;
}

static double load_float(const uint8_t *from, uint32_t size)
{
	double number;
	float single;

	if (size == 4) {
		memcpy(&single, from, 4);
		return single;
	}
	memcpy(&number, from, 8);
	return number;
}

int load_text(const uint8_t *from, uint32_t size, struct bytes *text, PyObject **held)
{
	size_t length = strnlen((const char *)from, size);
	uint8_t high = 0;
	Py_ssize_t utf8_length;
	const char *utf8;

	for (size_t i = 0; i < length; i++)
		high |= from[i];
	*text = (struct bytes){ from, length };
	if (high < 0x80)
		return 0;
	*held = PyUnicode_DecodeUTF8((const char *)from, (Py_ssize_t)length, "replace");
	utf8 = *held ? PyUnicode_AsUTF8AndSize(*held, &utf8_length) : NULL;
	if (!utf8)
		return -1;
	*text = (struct bytes){ (const uint8_t *)utf8, (size_t)utf8_length };
	return 0;
}

/* --- values that Python makes --------------------------------------------- */

static const uint8_t value_sizes[ROLES] = {
	[TRACE_ID] = 16, [SPAN_ID] = 8, [PARENT_SPAN_ID] = 8, [START] = 8,	  [DURATION] = 8,
	[KIND] = 1,	 [STATUS] = 1,	[LINK_TRACE_ID] = 16, [LINK_SPAN_ID] = 8, [EVENT] = 8,
};

/* What convert() returned: None, bytes, or the number of an outcome. */
static enum outcome outcome_of(PyObject *result, enum role role, struct bytes *value)
{
	if (result == Py_None)
		return NOTHING;
	if (PyLong_Check(result)) {
		long number = PyLong_AsLong(result);

		if (number == SKIPPED || number == FAILED)
			return (enum outcome)number;
	} else if (PyBytes_Check(result)) {
		value->data = (const uint8_t *)PyBytes_AS_STRING(result);
		value->size = (size_t)PyBytes_GET_SIZE(result);
		if (value->size > INT32_MAX) { /* protobuf's own limit */
			value->size = 0;
			return FAILED;
		}
		if (!value_sizes[role] || value->size == value_sizes[role])
			return FOUND;
	}
	if (!PyErr_Occurred())
		PyErr_Format(PyExc_TypeError, "convert() returned %R", result);
	return BROKEN;
}

static const struct entry *ask_python(struct encoder *encoder, struct column *column,
				      const uint8_t *key, uint64_t hash)
{
	PyObject *result = PyObject_CallFunction(column->convert, "y#", (const char *)key,
						 (Py_ssize_t)column->size);
	struct bytes value = { 0 };
	enum outcome outcome = result ? outcome_of(result, column->role, &value) : BROKEN;
	struct entry *entry = NULL;

	if (outcome != BROKEN) {
		entry = malloc(sizeof(*entry) + column->size + value.size);
		if (!entry)
			PyErr_NoMemory();
	}
	if (entry) {
		bool lasting = column->lasting && outcome != FAILED;

		entry->expires_ns = lasting ? 0 : encoder->now_ns + SECOND_NS;
		entry->size = (uint32_t)value.size;
		entry->outcome = (uint8_t)outcome;
		memcpy(entry->bytes, key, column->size);
		if (value.size)
			memcpy(entry->bytes + column->size, value.data, value.size);
		if (cache_put(&column->cache, hash, entry, column->size))
			entry = NULL;
	}
	Py_XDECREF(result);
	return entry;
}

enum outcome recall(struct encoder *encoder, struct column *column, const uint8_t *from,
		    struct bytes *value)
{
	uint64_t hash = cache_hash(from, column->size, encoder->seed);
	const struct entry *entry =
		cache_find(&column->cache, hash, from, column->size, encoder->now_ns);

	if (!entry)
		entry = ask_python(encoder, column, from, hash);
	if (!entry)
		return BROKEN;
	*value = (struct bytes){ entry->bytes + column->size, entry->size };
	return (enum outcome)entry->outcome;
}

/* --- attributes ----------------------------------------------------------- */

/* The head of an attribute whose AnyValue has `size` bytes; there is room for all of it. */
static uint8_t *attribute_head(struct buffer *out, const struct column *column, size_t size)
{
	uint8_t *to = out->data + out->used;

	*to++ = SPAN_ATTRIBUTE;
	to = put_varint(to, column->prefix.size + varint_size(size) + size);
	to = put_bytes(to, column->prefix.data, column->prefix.size);
	return put_varint(to, size);
}

static uint8_t *put_integer(struct buffer *out, const struct column *column, uint64_t number)
{
	uint8_t *to = attribute_head(out, column, 1 + varint_size(number));

	*to++ = 0x18; /* AnyValue.int_value */
	return put_varint(to, number);
}

static uint8_t *put_text(struct buffer *out, const struct column *column, struct bytes text)
{
	return put_sized(attribute_head(out, column, sized_size(text.size)), 0x0a, text);
}

/* OTLP's integers are int64: what is larger survives as text. */
static uint8_t *put_unsigned(struct buffer *out, const struct column *column, uint64_t number)
{
	uint8_t digits[20], *first = digits + sizeof(digits);

	if (number <= INT64_MAX)
		return put_integer(out, column, number);
	for (; number; number /= 10)
		*--first = (uint8_t)('0' + number % 10);
	return put_text(out, column,
			(struct bytes){ first, (size_t)(digits + sizeof(digits) - first) });
}

static uint8_t *put_hex(struct buffer *out, const struct column *column, const uint8_t *from)
{
	size_t size = 2 * (size_t)column->size;
	uint8_t *to = attribute_head(out, column, sized_size(size));

	*to++ = 0x0a; /* AnyValue.string_value */
	to = put_varint(to, size);
	for (uint32_t i = 0; i < column->size; i++) {
		*to++ = (uint8_t)"0123456789abcdef"[from[i] >> 4];
		*to++ = (uint8_t)"0123456789abcdef"[from[i] & 15];
	}
	return to;
}

static uint8_t *put_double(struct buffer *out, const struct column *column, double number)
{
	uint8_t *to = attribute_head(out, column, 9);
	uint64_t bits;

	memcpy(&bits, &number, 8);
	*to++ = 0x21; /* AnyValue.double_value */
	return put_fixed64(to, bits);
}

static uint8_t *put_bool(struct buffer *out, const struct column *column, bool value)
{
	uint8_t *to = attribute_head(out, column, 2);

	*to++ = 0x10; /* AnyValue.bool_value */
	*to++ = value;
	return to;
}

static enum outcome text_attribute(struct buffer *out, const struct column *column,
				   const uint8_t *from)
{
	enum outcome outcome = NOTHING;
	PyObject *held = NULL;
	struct bytes text;

	if (load_text(from, column->size, &text, &held)) {
		outcome = BROKEN;
	} else if (text.size) {
		outcome = FOUND;
		if (buffer_room(out, column->prefix.size + text.size + 64))
			outcome = BROKEN;
		else
			out->used = (size_t)(put_text(out, column, text) - out->data);
	}
	Py_XDECREF(held);
	return outcome;
}

static enum outcome called_attribute(struct encoder *encoder, struct column *column,
				     const uint8_t *from)
{
	struct buffer *out = &encoder->attributes;
	struct bytes value;
	enum outcome outcome = recall(encoder, column, from, &value);

	if (outcome != FOUND)
		return outcome;
	if (buffer_room(out, value.size))
		return BROKEN;
	memcpy(out->data + out->used, value.data, value.size);
	out->used += value.size;
	return FOUND;
}

enum outcome add_attribute(struct encoder *encoder, struct column *column, const uint8_t *from)
{
	struct buffer *out = &encoder->attributes;
	uint8_t *end;

	if (column->op == CALL)
		return called_attribute(encoder, column, from);
	if (column->op == TEXT)
		return text_attribute(out, column, from);
	if (buffer_room(out, column->prefix.size + 2 * (size_t)column->size + 64))
		return BROKEN;
	switch (column->op) {
	case UINT:
		end = put_unsigned(out, column, load_uint(from, column->size));
		break;
	case SINT:
		end = put_integer(out, column, (uint64_t)load_sint(from, column->size));
		break;
	case BOOL:
		end = put_bool(out, column, *from);
		break;
	case FLOAT:
		end = put_double(out, column, load_float(from, column->size));
		break;
	default:
		end = put_hex(out, column, from);
	}
	out->used = (size_t)(end - out->data);
	return FOUND;
}
