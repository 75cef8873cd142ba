/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layouts as native.py describes them, checked: whatever Python passes, no
 * column may be read beyond its record.
 */
#include "_otlp.h"

#include <stdlib.h>
#include <string.h>

static const char *const role_names[ROLES] = {
	[ATTRIBUTE] = "",
	[TRACE_ID] = "trace_id",
	[SPAN_ID] = "span_id",
	[PARENT_SPAN_ID] = "parent_span_id",
	[START] = "start",
	[DURATION] = "duration",
	[SPAN_NAME] = "span_name",
	[KIND] = "kind",
	[STATUS] = "status",
	[ERROR_TEXT] = "error",
	[SERVICE] = "service",
	[LINK_TRACE_ID] = "link_trace_id",
	[LINK_SPAN_ID] = "link_span_id",
	[EVENT] = "event",
};

static const char *const op_names[OPS] = {
	[CALL] = "call",   [UINT] = "uint", [SINT] = "sint", [BOOL] = "bool",
	[FLOAT] = "float", [TEXT] = "text", [HEX] = "hex",   [BYTES] = "bytes",
};

static int find_name(const char *const *names, int count, const char *name)
{
	for (int i = 0; i < count; i++)
		if (!strcmp(names[i], name))
			return i;
	PyErr_Format(PyExc_ValueError, "there is no \"%s\"", name);
	return -1;
}

static struct bytes bytes_of(PyObject *object)
{
	return (struct bytes){ (const uint8_t *)PyBytes_AS_STRING(object),
			       (size_t)PyBytes_GET_SIZE(object) };
}

static bool fits(const struct column *column)
{
	uint32_t size = column->size;

	switch (column->op) {
	case UINT:
	case SINT:
		return size == 1 || size == 2 || size == 4 || size == 8;
	case BOOL:
		return size == 1;
	case FLOAT:
		return size == 4 || size == 8;
	default:
		return size > 0;
	}
}

/* Can a column of this role be read in this way? */
static bool agrees(const struct column *column)
{
	enum op op = column->op;

	if (op == CALL)
		return true;
	switch (column->role) {
	case ATTRIBUTE:
		return op != BYTES;
	case TRACE_ID:
	case LINK_TRACE_ID:
		return op == BYTES && column->size == 16;
	case SPAN_ID:
	case PARENT_SPAN_ID:
	case LINK_SPAN_ID:
		return op == BYTES && column->size == 8;
	case START:
	case DURATION:
	case EVENT:
		return op == UINT || op == SINT;
	case SPAN_NAME:
	case ERROR_TEXT:
	case SERVICE:
		return op == TEXT;
	default:
		return false;
	}
}

static int column_check(const struct column *column, const struct layout *layout)
{
	if ((uint64_t)column->offset + column->size > layout->size) {
		PyErr_SetString(PyExc_ValueError, "a column ends beyond its record");
	} else if (!fits(column) || !agrees(column)) {
		PyErr_Format(PyExc_ValueError, "%u bytes of role \"%s\" cannot be read as %s",
			     column->size, role_names[column->role], op_names[column->op]);
	} else if (column->omit.size && column->omit.size != column->size) {
		PyErr_SetString(PyExc_ValueError, "`omit` has not the size of its column");
	} else if (column->key >= MAX_KEYS) {
		PyErr_SetString(PyExc_ValueError, "too many columns share their keys");
	} else if (column->op == CALL && !PyCallable_Check(column->convert)) {
		PyErr_SetString(PyExc_TypeError, "`convert` cannot be called");
	} else {
		return 0;
	}
	return -1;
}

/* (role, op, offset, size, prefix, omit, key, lasting, convert) */
static int column_parse(struct column *column, PyObject *tuple, const struct layout *layout)
{
	PyObject *prefix, *omit, *convert;
	const char *role, *op;
	int lasting, found;

	if (!PyTuple_Check(tuple)) {
		PyErr_SetString(PyExc_TypeError, "a column is a tuple");
		return -1;
	}
	if (!PyArg_ParseTuple(tuple, "ssIISSipO", &role, &op, &column->offset, &column->size,
			      &prefix, &omit, &column->key, &lasting, &convert))
		return -1;
	found = find_name(role_names, ROLES, role);
	if (found < 0)
		return -1;
	column->role = (enum role)found;
	found = find_name(op_names, OPS, op);
	if (found < 0)
		return -1;
	column->op = (enum op)found;
	column->prefix = bytes_of(prefix);
	column->omit = bytes_of(omit);
	column->lasting = lasting;
	column->convert = column->op == CALL ? convert : NULL;
	column->held = Py_NewRef(tuple); /* holds `convert` too */
	return column_check(column, layout);
}

static int columns_parse(struct layout *layout, PyObject *columns)
{
	layout->column_count = (size_t)PyTuple_GET_SIZE(columns);
	layout->columns = calloc(layout->column_count + 1, sizeof(*layout->columns));
	if (!layout->columns) {
		layout->column_count = 0;
		PyErr_NoMemory();
		return -1;
	}
	for (size_t i = 0; i < layout->column_count; i++) {
		struct column *column = &layout->columns[i];

		if (column_parse(column, PyTuple_GET_ITEM(columns, (Py_ssize_t)i), layout))
			return -1;
		layout->has_trace_id |= column->role == TRACE_ID;
		layout->has_shared_keys |= column->key >= 0;
	}
	return 0;
}

static int fallbacks_parse(struct layout *layout, PyObject *fallbacks)
{
	layout->fallback_count = (size_t)PyTuple_GET_SIZE(fallbacks);
	layout->fallbacks = calloc(layout->fallback_count + 1, sizeof(*layout->fallbacks));
	if (!layout->fallbacks) {
		PyErr_NoMemory();
		return -1;
	}
	for (size_t i = 0; i < layout->fallback_count; i++) {
		struct fallback *fallback = &layout->fallbacks[i];
		PyObject *attribute;

		if (!PyArg_ParseTuple(PyTuple_GET_ITEM(fallbacks, (Py_ssize_t)i), "iS",
				      &fallback->key, &attribute))
			return -1;
		if (fallback->key < 0 || fallback->key >= MAX_KEYS) {
			PyErr_SetString(PyExc_ValueError, "a key out of range");
			return -1;
		}
		fallback->attribute = bytes_of(attribute);
	}
	return 0;
}

/* (type or None, type_offset, size, program, name, service, kind, attributes, fallbacks, columns) */
static int layout_parse(struct layout *layout, PyObject *tuple)
{
	PyObject *type, *program, *name, *service, *attributes, *fallbacks, *columns;

	if (!PyTuple_Check(tuple)) {
		PyErr_SetString(PyExc_TypeError, "a layout is a tuple");
		return -1;
	}
	if (!PyArg_ParseTuple(tuple, "OIIUSSbSO!O!", &type, &layout->type_offset, &layout->size,
			      &program, &name, &service, &layout->kind, &attributes, &PyTuple_Type,
			      &fallbacks, &PyTuple_Type, &columns))
		return -1;
	layout->any_type = type == Py_None;
	if (!layout->any_type) {
		layout->type = (uint32_t)PyLong_AsUnsignedLongMask(type);
		if (PyErr_Occurred())
			return -1;
	}
	layout->held = Py_NewRef(tuple);
	layout->program = Py_NewRef(program);
	PyUnicode_InternInPlace(&layout->program);
	layout->name = bytes_of(name);
	layout->service = bytes_of(service);
	layout->attributes = bytes_of(attributes);
	return columns_parse(layout, columns) || fallbacks_parse(layout, fallbacks) ? -1 : 0;
}

int ring_parse(struct ring *ring, PyObject *layouts)
{
	/* our own: reading a layout may run Python, which may change the caller's */
	PyObject *held = PySequence_Tuple(layouts);
	size_t count;

	if (!held)
		return -1;
	count = (size_t)PyTuple_GET_SIZE(held);
	memset(ring, 0, sizeof(*ring));
	ring->layouts = calloc(count + 1, sizeof(*ring->layouts));
	if (!ring->layouts)
		PyErr_NoMemory();
	while (ring->layouts && ring->count < count) {
		PyObject *tuple = PyTuple_GET_ITEM(held, (Py_ssize_t)ring->count);

		if (layout_parse(&ring->layouts[ring->count++], tuple))
			break;
	}
	Py_DECREF(held);
	if (!PyErr_Occurred())
		return 0;
	ring_free(ring);
	return -1;
}

int ring_visit(struct ring *ring, visitproc visit, void *arg)
{
	for (size_t i = 0; i < ring->count; i++) {
		struct layout *layout = &ring->layouts[i];

		Py_VISIT(layout->held);
		for (size_t j = 0; j < layout->column_count; j++)
			Py_VISIT(layout->columns[j].held);
	}
	return 0;
}

void ring_free(struct ring *ring)
{
	struct ring gone = *ring;

	/* first out of sight: what follows may run Python */
	memset(ring, 0, sizeof(*ring));
	for (size_t i = 0; i < gone.count; i++) {
		struct layout *layout = &gone.layouts[i];

		for (size_t j = 0; j < layout->column_count; j++) {
			cache_free(&layout->columns[j].cache);
			Py_XDECREF(layout->columns[j].held);
		}
		free(layout->columns);
		free(layout->fallbacks);
		Py_XDECREF(layout->program);
		Py_XDECREF(layout->held);
	}
	free(gone.layouts);
}
