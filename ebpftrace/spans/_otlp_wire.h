/* SPDX-License-Identifier: Apache-2.0 */
/* Protobuf's wire format: each function writes where there is room and returns the end. */
#ifndef EBPFTRACE_OTLP_WIRE_H
#define EBPFTRACE_OTLP_WIRE_H

#include "_otlp.h"

#include <string.h>

/* Fields of Span: number << 3 | wire type. */
#define SPAN_TRACE_ID 0x0a
#define SPAN_SPAN_ID 0x12
#define SPAN_PARENT 0x22
#define SPAN_NAME_FIELD 0x2a
#define SPAN_KIND 0x30
#define SPAN_START 0x39
#define SPAN_END 0x41
#define SPAN_ATTRIBUTE 0x4a
#define SPAN_EVENT 0x5a
#define SPAN_LINK 0x6a
#define SPAN_STATUS 0x7a

static inline size_t varint_size(uint64_t number)
{
	return number ? (70 - (size_t)__builtin_clzll(number)) / 7 : 1;
}

static inline uint8_t *put_varint(uint8_t *to, uint64_t number)
{
	for (; number > 0x7f; number >>= 7)
		*to++ = (uint8_t)(number | 0x80);
	*to++ = (uint8_t)number;
	return to;
}

static inline uint8_t *put_bytes(uint8_t *to, const void *from, size_t size)
{
	memcpy(to, from, size);
	return to + size;
}

static inline uint8_t *put_fixed64(uint8_t *to, uint64_t number)
{
	for (int i = 0; i < 8; i++)
		*to++ = (uint8_t)(number >> 8 * i);
	return to;
}

static inline uint8_t *put_sized(uint8_t *to, uint8_t tag, struct bytes payload)
{
	*to++ = tag;
	to = put_varint(to, payload.size);
	return put_bytes(to, payload.data, payload.size);
}

static inline size_t sized_size(size_t payload)
{
	return 1 + varint_size(payload) + payload;
}

#endif
