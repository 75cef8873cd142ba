/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One record: its columns read in order, then its span written in one go.
 *
 * The fields are those of opentelemetry-proto's trace.proto, in the order of
 * their numbers; spans/protobuf.py writes the same bytes.
 */
#include "_otlp_wire.h"

/* Span.flags = 16: has_is_remote, and not remote, as the SDK's exporter says of a local parent */
static const uint8_t span_flags[] = { 0x85, 0x01, 0x00, 0x01, 0x00, 0x00 };
static const uint8_t link_flags[] = { 0x35, 0x00, 0x01, 0x00, 0x00 };

#define SCOPE_SPANS 0x12 /* ScopeSpans.spans */
#define STATUS_ERROR 2

/* What a record says that is no attribute. */
struct draft {
	uint8_t trace_id[16], parent[8], span_id[8], link_trace_id[16];
	bool has_trace_id, has_parent, has_span_id, has_link, has_start;
	uint64_t start, duration;
	struct bytes name, error, service;
	uint8_t kind, status;
	PyObject *held[3]; /* what name, error and service lie in, if anything */
};

static bool is_zero(const uint8_t *bytes, size_t size)
{
	uint8_t any = 0;

	for (size_t i = 0; i < size; i++)
		any |= bytes[i];
	return !any;
}

/* --- columns with a role -------------------------------------------------- */

static uint64_t to_epoch(const struct encoder *encoder, uint64_t mono_ns)
{
	uint64_t offset = (uint64_t)encoder->offset_ns, sum;

	if (encoder->offset_ns < 0)
		return mono_ns > -offset ? mono_ns + offset : 0;
	return __builtin_add_overflow(mono_ns, offset, &sum) ? UINT64_MAX : sum;
}

static enum outcome get_time(struct encoder *encoder, struct column *column, const uint8_t *from,
			     uint64_t *time_ns)
{
	struct bytes value;
	enum outcome outcome;
	int64_t number;

	if (column->op == UINT) {
		*time_ns = load_uint(from, column->size);
		return FOUND;
	}
	if (column->op == SINT) {
		number = load_sint(from, column->size);
		*time_ns = number < 0 ? 0 : (uint64_t)number;
		return FOUND;
	}
	outcome = recall(encoder, column, from, &value);
	if (outcome == FOUND)
		memcpy(time_ns, value.data, sizeof(*time_ns));
	return outcome;
}

static enum outcome get_bytes(struct encoder *encoder, struct column *column, const uint8_t *from,
			      struct bytes *value)
{
	if (column->op != BYTES)
		return recall(encoder, column, from, value);
	*value = (struct bytes){ from, column->size };
	return FOUND;
}

/* Into `id`; `found` tells whether it is one: no id is all zero. */
static enum outcome get_id(struct encoder *encoder, struct column *column, const uint8_t *from,
			   uint8_t *id, bool *found)
{
	struct bytes value;
	enum outcome outcome = get_bytes(encoder, column, from, &value);

	*found = outcome == FOUND && !is_zero(value.data, value.size);
	if (*found)
		memcpy(id, value.data, value.size);
	return outcome;
}

static enum outcome get_text(struct encoder *encoder, struct column *column, const uint8_t *from,
			     struct bytes *text, PyObject **held)
{
	struct bytes value;
	enum outcome outcome = FOUND;

	if (column->op != TEXT)
		outcome = recall(encoder, column, from, &value);
	else if (load_text(from, column->size, &value, held))
		outcome = BROKEN;
	if (outcome == FOUND && value.size)
		*text = value;
	return outcome;
}

static enum outcome add_link(struct encoder *encoder, struct column *column, const uint8_t *from,
			     struct draft *draft)
{
	struct buffer *out = &encoder->links;
	uint8_t span_id[8], *to;
	bool found;
	enum outcome outcome = get_id(encoder, column, from, span_id, &found);

	if (!found || !draft->has_link)
		return outcome;
	if (buffer_room(out, 64))
		return BROKEN;
	to = out->data + out->used;
	*to++ = SPAN_LINK;
	*to++ = 18 + 10 + sizeof(link_flags);
	to = put_sized(to, 0x0a, (struct bytes){ draft->link_trace_id, 16 });
	to = put_sized(to, 0x12, (struct bytes){ span_id, 8 });
	to = put_bytes(to, link_flags, sizeof(link_flags));
	out->used = (size_t)(to - out->data);
	return FOUND;
}

static enum outcome add_event(struct encoder *encoder, struct column *column, const uint8_t *from)
{
	struct buffer *out = &encoder->events;
	uint64_t time_ns = 0;
	enum outcome outcome = get_time(encoder, column, from, &time_ns);
	uint8_t *to;

	if (outcome != FOUND || !time_ns)
		return outcome;
	if (buffer_room(out, column->prefix.size + 32))
		return BROKEN;
	to = out->data + out->used;
	*to++ = SPAN_EVENT;
	to = put_varint(to, 9 + column->prefix.size);
	*to++ = 0x09; /* Event.time_unix_nano */
	to = put_fixed64(to, to_epoch(encoder, time_ns));
	to = put_bytes(to, column->prefix.data, column->prefix.size);
	out->used = (size_t)(to - out->data);
	return FOUND;
}

static enum outcome get_enum(struct encoder *encoder, struct column *column, const uint8_t *from,
			     uint8_t *number)
{
	struct bytes value;
	enum outcome outcome = recall(encoder, column, from, &value);

	if (outcome == FOUND)
		*number = *value.data;
	return outcome;
}

static enum outcome read_role(struct encoder *encoder, struct column *column, const uint8_t *from,
			      struct draft *draft)
{
	enum outcome outcome;

	switch (column->role) {
	case TRACE_ID:
		return get_id(encoder, column, from, draft->trace_id, &draft->has_trace_id);
	case SPAN_ID:
		return get_id(encoder, column, from, draft->span_id, &draft->has_span_id);
	case PARENT_SPAN_ID:
		return get_id(encoder, column, from, draft->parent, &draft->has_parent);
	case LINK_TRACE_ID:
		return get_id(encoder, column, from, draft->link_trace_id, &draft->has_link);
	case START:
		outcome = get_time(encoder, column, from, &draft->start);
		draft->has_start = outcome == FOUND;
		return outcome;
	case DURATION:
		return get_time(encoder, column, from, &draft->duration);
	case SPAN_NAME:
		return get_text(encoder, column, from, &draft->name, &draft->held[0]);
	case ERROR_TEXT:
		return get_text(encoder, column, from, &draft->error, &draft->held[1]);
	case SERVICE:
		return get_text(encoder, column, from, &draft->service, &draft->held[2]);
	case KIND:
		return get_enum(encoder, column, from, &draft->kind);
	case STATUS:
		return get_enum(encoder, column, from, &draft->status);
	default:
		return NOTHING;
	}
}

static enum outcome read_column(struct encoder *encoder, struct column *column,
				const uint8_t *record, struct draft *draft)
{
	const uint8_t *from = record + column->offset;
	enum outcome outcome = NOTHING;

	if (column->key >= 0 && encoder->taken[column->key])
		return NOTHING;
	if (column->role == LINK_TRACE_ID)
		draft->has_link = false; /* of the link before */
	if (!column->omit.size || memcmp(from, column->omit.data, column->size)) {
		if (column->role == ATTRIBUTE)
			outcome = add_attribute(encoder, column, from);
		else if (column->role == EVENT)
			outcome = add_event(encoder, column, from);
		else if (column->role == LINK_SPAN_ID)
			outcome = add_link(encoder, column, from, draft);
		else
			outcome = read_role(encoder, column, from, draft);
	}
	if (outcome == FOUND && column->key >= 0)
		encoder->taken[column->key] = 1;
	if (column->role == TRACE_ID && outcome < NO_TRACE_ID && !draft->has_trace_id)
		outcome = NO_TRACE_ID;
	return outcome;
}

/* --- the span ------------------------------------------------------------- */

static int add_fallbacks(struct encoder *encoder, const struct layout *layout)
{
	struct buffer *out = &encoder->attributes;

	for (size_t i = 0; i < layout->fallback_count; i++) {
		const struct fallback *fallback = &layout->fallbacks[i];

		if (encoder->taken[fallback->key])
			continue;
		if (buffer_room(out, fallback->attribute.size))
			return -1;
		memcpy(out->data + out->used, fallback->attribute.data, fallback->attribute.size);
		out->used += fallback->attribute.size;
	}
	return 0;
}

static void fill_in(struct encoder *encoder, const struct layout *layout, struct draft *draft)
{
	if (!layout->has_trace_id) {
		uint64_t high = random_id(encoder), low = random_id(encoder);

		memcpy(draft->trace_id, &high, 8);
		memcpy(draft->trace_id + 8, &low, 8);
		draft->has_parent = false; /* it would be a span of another trace */
	}
	if (!draft->has_span_id) {
		uint64_t id = random_id(encoder);

		memcpy(draft->span_id, &id, 8);
	}
	draft->start = draft->has_start ? to_epoch(encoder, draft->start) : encoder->epoch_ns;
	if (draft->error.size)
		draft->status = STATUS_ERROR;
}

static size_t status_size(const struct draft *draft)
{
	return (draft->error.size ? sized_size(draft->error.size) : 0) + (draft->status ? 2 : 0);
}

static size_t span_size(const struct draft *draft, const struct encoder *encoder,
			const struct layout *layout)
{
	return 18 + 10 + (draft->has_parent ? 10 : 0) +
	       (draft->name.size ? sized_size(draft->name.size) : 0) + 2 + 9 + 9 +
	       layout->attributes.size + encoder->attributes.used + encoder->events.used +
	       encoder->links.used + sized_size(status_size(draft)) + sizeof(span_flags);
}

static uint8_t *put_buffer(uint8_t *to, const struct buffer *buffer)
{
	return buffer->used ? put_bytes(to, buffer->data, buffer->used) : to;
}

static uint8_t *put_span(uint8_t *to, const struct draft *draft, const struct encoder *encoder,
			 const struct layout *layout)
{
	uint64_t end;

	if (__builtin_add_overflow(draft->start, draft->duration, &end))
		end = UINT64_MAX;
	to = put_sized(to, SPAN_TRACE_ID, (struct bytes){ draft->trace_id, 16 });
	to = put_sized(to, SPAN_SPAN_ID, (struct bytes){ draft->span_id, 8 });
	if (draft->has_parent)
		to = put_sized(to, SPAN_PARENT, (struct bytes){ draft->parent, 8 });
	if (draft->name.size)
		to = put_sized(to, SPAN_NAME_FIELD, draft->name);
	*to++ = SPAN_KIND;
	*to++ = draft->kind;
	*to++ = SPAN_START;
	to = put_fixed64(to, draft->start);
	*to++ = SPAN_END;
	to = put_fixed64(to, end);
	to = put_bytes(to, layout->attributes.data, layout->attributes.size);
	to = put_buffer(to, &encoder->attributes);
	to = put_buffer(to, &encoder->events);
	to = put_buffer(to, &encoder->links);
	*to++ = SPAN_STATUS;
	to = put_varint(to, status_size(draft));
	if (draft->error.size)
		to = put_sized(to, 0x12, draft->error); /* Status.message */
	if (draft->status) {
		*to++ = 0x18; /* Status.code */
		*to++ = draft->status;
	}
	return put_bytes(to, span_flags, sizeof(span_flags));
}

static enum outcome write_span(struct encoder *encoder, const struct layout *layout,
			       struct draft *draft)
{
	struct chunk *chunk;
	uint8_t *to;
	size_t size;

	if (add_fallbacks(encoder, layout))
		return BROKEN;
	fill_in(encoder, layout, draft);
	size = span_size(draft, encoder, layout);
	chunk = chunk_for(encoder, draft->service, layout->program, sized_size(size));
	if (!chunk)
		return BROKEN;
	to = chunk->spans.data + chunk->spans.used;
	*to++ = SCOPE_SPANS;
	to = put_varint(to, size);
	to = put_span(to, draft, encoder, layout);
	chunk->spans.used = (size_t)(to - chunk->spans.data);
	chunk->count++;
	return FOUND;
}

enum outcome record_encode(struct encoder *encoder, const struct layout *layout,
			   const uint8_t *record)
{
	struct draft draft = {
		.name = layout->name,
		.service = layout->service,
		.kind = layout->kind,
	};
	enum outcome outcome = FOUND;

	encoder->attributes.used = encoder->events.used = encoder->links.used = 0;
	if (layout->has_shared_keys)
		memset(encoder->taken, 0, sizeof(encoder->taken));
	for (size_t i = 0; i < layout->column_count && outcome < NO_TRACE_ID; i++)
		outcome = read_column(encoder, &layout->columns[i], record, &draft);
	if (outcome < NO_TRACE_ID)
		outcome = write_span(encoder, layout, &draft);
	for (int i = 0; i < 3; i++)
		Py_XDECREF(draft.held[i]);
	return outcome;
}
