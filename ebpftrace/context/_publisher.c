/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The publisher: puts the current thread's OpenTelemetry context where BPF
 * programs find it, and reads back where the thread's time went.
 *
 * It stands in for opentelemetry.context's runtime context, so it runs twice
 * for every span that an application makes: no system call on that path, no
 * allocation of its own, and no exception of its own into the application.
 */
#include "_publisher.h"

#include <endian.h>
#include <structmember.h>

#define SAMPLED 0x01

/* What BPF reads of a PyThreadState is one piece of it. */
static_assert(offsetof(PyThreadState, context_ver) == offsetof(PyThreadState, context) + 8 &&
		      offsetof(PyThreadState, id) == offsetof(PyThreadState, context) + 16 &&
		      sizeof(struct ebt_python) == 24,
	      "this CPython lays its PyThreadState out in another way");

struct state state;
struct counters counters;

/* --- publishing ---------------------------------------------------------- */

static int trace_id_bytes(PyObject *id, unsigned char *bytes)
{
#if PY_VERSION_HEX >= 0x030D0000
	Py_ssize_t needed = PyLong_AsNativeBytes(
		id, bytes, 16, Py_ASNATIVEBYTES_BIG_ENDIAN | Py_ASNATIVEBYTES_UNSIGNED_BUFFER);

	return needed < 0 || needed > 16 ? -1 : 0; /* a larger number is cut off, not refused */
#else
	return _PyLong_AsByteArray((PyLongObject *)id, bytes, 16, 0, 0);
#endif
}

/*
 * The bytes of a trace id.  The last one is kept: all spans of a trace share
 * one int, and turning that into bytes costs more than the rest of a publish.
 */
static int trace_id_store(PyObject *id, __u8 *to)
{
	static struct {
		PyObject *id; /* referred to, so that no other int gets its address */
		unsigned char bytes[16];
	} last;
	unsigned char bytes[16];

	if (id != last.id) {
		if (!PyLong_Check(id) || trace_id_bytes(id, bytes))
			return -1;
		memcpy(last.bytes, bytes, sizeof(bytes));
		Py_XSETREF(last.id, Py_NewRef(id));
	}
	memcpy(to, last.bytes, sizeof(last.bytes));
	return 0;
}

/* A valid span context's span id fits 64 bits, so nothing is masked away. */
static int span_id_store(PyObject *id, __u8 *to)
{
	__u64 bytes;

	if (!PyLong_Check(id))
		return -1;
	bytes = htobe64(PyLong_AsUnsignedLongLongMask(id));
	memcpy(to, &bytes, sizeof(bytes));
	return 0;
}

/*
 * The programs enabled by `context` for the span whose id is `span_id`.  The
 * value is (mask for this context and all below it, mask for one span alone,
 * the id of that span).
 */
static unsigned int context_mask(PyObject *context, PyObject *span_id)
{
	PyObject *value = PyDict_GetItemWithError(context, state.mask_key);
	unsigned long mask = state.default_mask;

	if (!value || !PyTuple_Check(value) || PyTuple_GET_SIZE(value) != 3)
		return (unsigned int)mask;
	mask |= PyLong_AsUnsignedLongMask(PyTuple_GET_ITEM(value, 0));
	if (PyObject_RichCompareBool(PyTuple_GET_ITEM(value, 2), span_id, Py_EQ) == 1)
		mask |= PyLong_AsUnsignedLongMask(PyTuple_GET_ITEM(value, 1));
	return (unsigned int)mask;
}

/*
 * Does reading `_context` of a span of this type run no Python?  One type is
 * remembered, by a number that is the type's until it is changed.
 */
static bool span_is_plain(PyTypeObject *type)
{
	static unsigned int plain;
	PyObject *found;

	if (plain && type->tp_version_tag == plain)
		return true;
	if (type->tp_getattro != PyObject_GenericGetAttr)
		return false;
	found = _PyType_Lookup(type, state.context_attr);
	if (found && !Py_IS_TYPE(found, &PyMemberDescr_Type))
		return false;
	plain = type->tp_version_tag;
	return true;
}

/* New reference to the SpanContext tuple of the span in `context`, or NULL: none, or not one we know. */
static PyObject *span_context(PyObject *context, bool quiet)
{
	PyObject *span, *found;

	if (!PyDict_Check(context))
		return NULL;
	span = PyDict_GetItemWithError(context, state.span_key);
	if (!span)
		return NULL;
	if (quiet && !span_is_plain(Py_TYPE(span)))
		return NULL;
	found = PyObject_GetAttr(span, state.context_attr);
	if (!found && quiet)
		return NULL;
	if (!found) {
		PyErr_Clear();
		found = PyObject_CallMethodNoArgs(span, state.get_span_context);
	}
	if (found && (!PyTuple_Check(found) || PyTuple_GET_SIZE(found) < 6)) {
		Py_CLEAR(found);
		counters.errors++;
	}
	return found;
}

static void slot_store(struct ebt_slot *slot, PyThreadState *thread, PyObject *context,
		       PyObject *span)
{
	unsigned long flags = PyLong_AsUnsignedLongMask(PyTuple_GET_ITEM(span, 3));
	struct ebt_python python = python_state(thread);

	if (trace_id_store(PyTuple_GET_ITEM(span, 0), slot->trace_id) ||
	    span_id_store(PyTuple_GET_ITEM(span, 1), slot->span_id)) {
		counters.errors++;
		return;
	}
	slot->trace_flags = (__u8)flags;
	slot->mask = flags & SAMPLED ? context_mask(context, PyTuple_GET_ITEM(span, 1)) : 0;
	slot->stamp_addr = (__u64)(uintptr_t)&thread->context;
	slot->stamp = ebt_stamp(&python);
	atomic_signal_fence(memory_order_seq_cst);
	slot->valid = 1;
}

bool context_exists(PyThreadState *thread)
{
	PyObject *copy;

	if (thread->context)
		return true;
	copy = PyContext_CopyCurrent();
	Py_XDECREF(copy);
	PyErr_Clear();
	return thread->context != NULL;
}

void publish(PyObject *context, bool quiet)
{
	PyThreadState *thread = PyThreadState_Get();
	unsigned int number = ++self.publishes;
	struct ebt_slot *slot;
	PyObject *span;

	if (!table.slots)
		return;
	switches_note(thread);
	/* Only this thread's own switches and interrupts can look in between: a compiler fence is enough. */
	slot = slot_known();
	if (slot)
		slot->valid = 0;
	if (state.silent)
		return;
	atomic_signal_fence(memory_order_seq_cst);
	span = span_context(context, quiet);
	if (span) {
		/*
		 * A span of another kind ran Python for that, and meanwhile the table may have gone, or changed; what
		 * was published meanwhile is newer than this.  Making a context may run Python, too.
		 */
		if (PyTuple_GET_ITEM(span, 5) == Py_True && context_exists(thread) && table.slots &&
		    self.publishes == number) {
			slot = slot_mine();
			if (slot)
				slot_store(slot, thread, context, span);
		}
		Py_DECREF(span);
	}
	if (PyErr_Occurred()) {
		PyErr_Clear();
		counters.errors++;
	}
}

void publish_nothing(void)
{
	struct ebt_slot *slot = slot_known();

	if (slot)
		slot->valid = 0;
}

static void call_on_fork(void)
{
	PyObject *result;

	state.forked = false;
	if (!state.on_fork)
		return;
	result = PyObject_CallNoArgs(state.on_fork);
	if (!result)
		PyErr_WriteUnraisable(state.on_fork);
	Py_XDECREF(result);
}

/* --- the runtime context ------------------------------------------------- */

typedef struct {
	PyObject_HEAD
	PyObject *inner; /* the runtime context that was there before */
	PyObject *variable; /* its ContextVar when it is OpenTelemetry's own, else NULL */
} RuntimeContext;

static PyObject *inner_current(RuntimeContext *runtime)
{
	PyObject *context = NULL;

	if (!runtime->variable)
		return PyObject_CallMethodNoArgs(runtime->inner, state.get_current);
	if (PyContextVar_Get(runtime->variable, NULL, &context) < 0)
		return NULL;
	if (!context)
		PyErr_SetObject(PyExc_LookupError, runtime->variable);
	return context;
}

static PyObject *runtime_attach(RuntimeContext *runtime, PyObject *context)
{
	PyObject *token;

	if (runtime->variable)
		token = PyContextVar_Set(runtime->variable, context);
	else
		token = PyObject_CallMethodOneArg(runtime->inner, state.attach, context);
	if (!token)
		return NULL;
	if (state.forked)
		call_on_fork();
	publish(context, false);
	return token;
}

/* Publish what is current after a detach, whether or not that failed. */
static void publish_current(RuntimeContext *runtime)
{
	PyObject *type, *value, *traceback, *context;

	if (!table.slots)
		return;
	PyErr_Fetch(&type, &value, &traceback);
	context = inner_current(runtime);
	if (context) {
		publish(context, false);
		Py_DECREF(context);
	} else {
		/* nobody knows what is current: it is not what was published before */
		PyErr_Clear();
		counters.errors++;
		publish_nothing();
	}
	PyErr_Restore(type, value, traceback);
}

static PyObject *runtime_detach(RuntimeContext *runtime, PyObject *token)
{
	PyObject *result;

	if (runtime->variable) {
		result = PyContextVar_Reset(runtime->variable, token) < 0 ? NULL :
									    Py_NewRef(Py_None);
	} else {
		result = PyObject_CallMethodOneArg(runtime->inner, state.detach, token);
	}
	publish_current(runtime);
	return result;
}

static PyObject *runtime_get_current(RuntimeContext *runtime, PyObject *Py_UNUSED(ignored))
{
	return inner_current(runtime);
}

static PyObject *runtime_publish(RuntimeContext *runtime, PyObject *Py_UNUSED(ignored))
{
	publish_current(runtime);
	Py_RETURN_NONE;
}

static int runtime_init(RuntimeContext *runtime, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "inner", "variable", NULL };
	PyObject *inner, *variable = Py_None;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O", names, &inner, &variable))
		return -1;
	if (variable != Py_None && !PyContextVar_CheckExact(variable)) {
		PyErr_SetString(PyExc_TypeError,
				"variable must be a contextvars.ContextVar or None");
		return -1;
	}
	Py_XSETREF(runtime->inner, Py_NewRef(inner));
	Py_XSETREF(runtime->variable, variable == Py_None ? NULL : Py_NewRef(variable));
	return 0;
}

static int runtime_traverse(RuntimeContext *runtime, visitproc visit, void *arg)
{
	Py_VISIT(runtime->inner);
	Py_VISIT(runtime->variable);
	return 0;
}

static int runtime_clear(RuntimeContext *runtime)
{
	Py_CLEAR(runtime->inner);
	Py_CLEAR(runtime->variable);
	return 0;
}

static void runtime_dealloc(RuntimeContext *runtime)
{
	PyObject_GC_UnTrack(runtime);
	runtime_clear(runtime);
	Py_TYPE(runtime)->tp_free((PyObject *)runtime);
}

static PyMethodDef runtime_methods[] = {
	{ "attach", (PyCFunction)runtime_attach, METH_O,
	  "Make a context current, publish its span; returns the token for detach()." },
	{ "detach", (PyCFunction)runtime_detach, METH_O,
	  "Make the context before the token's attach() current again, and publish its span." },
	{ "get_current", (PyCFunction)runtime_get_current, METH_NOARGS, "The current context." },
	{ "publish", (PyCFunction)runtime_publish, METH_NOARGS,
	  "Publish the current context once more." },
	{ NULL },
};

static PyMemberDef runtime_members[] = {
	{ "inner", T_OBJECT, offsetof(RuntimeContext, inner), READONLY,
	  "The runtime context that this wraps." },
	{ NULL },
};

static PyTypeObject runtime_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "ebpftrace.context._publisher.RuntimeContext",
	.tp_doc =
		"OpenTelemetry's runtime context, which also publishes what is current to the kernel.",
	.tp_basicsize = sizeof(RuntimeContext),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
	.tp_new = PyType_GenericNew,
	.tp_init = (initproc)runtime_init,
	.tp_traverse = (traverseproc)runtime_traverse,
	.tp_clear = (inquiry)runtime_clear,
	.tp_dealloc = (destructor)runtime_dealloc,
	.tp_methods = runtime_methods,
	.tp_members = runtime_members,
};

/* --- the module ---------------------------------------------------------- */

static PyObject *configure(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "span_key", "mask_key", "on_fork", NULL };
	PyObject *span_key, *mask_key, *on_fork;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "UUO", names, &span_key, &mask_key,
					 &on_fork))
		return NULL;
	Py_XSETREF(state.span_key, Py_NewRef(span_key));
	Py_XSETREF(state.mask_key, Py_NewRef(mask_key));
	Py_XSETREF(state.on_fork, Py_NewRef(on_fork));
	Py_RETURN_NONE;
}

static PyObject *set_default_mask(PyObject *Py_UNUSED(module), PyObject *mask)
{
	unsigned long value = PyLong_AsUnsignedLong(mask);

	if (PyErr_Occurred())
		return NULL;
	state.default_mask = (unsigned int)value;
	Py_RETURN_NONE;
}

static PyObject *silence(PyObject *Py_UNUSED(module), PyObject *on)
{
	int silent = PyObject_IsTrue(on);

	if (silent < 0)
		return NULL;
	state.silent = silent;
	if (silent)
		table_clear();
	Py_RETURN_NONE;
}

/* The table was forgotten in a fork: at the next attach, call on_fork. */
static PyObject *expect_fork(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	state.forked = true;
	Py_RETURN_NONE;
}

static PyObject *get_counters(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return Py_BuildValue("{s:K,s:K}", "no_slot", counters.no_slot, "errors", counters.errors);
}

static PyObject *get_missed_switches(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyLong_FromUnsignedLongLong(counters.missed);
}

static PyObject *get_current(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	struct ebt_slot *slot = table.slots ? slot_held() : NULL;

	if (!slot || slot->valid != 1 ||
	    ebt_stamp((struct ebt_python *)(uintptr_t)slot->stamp_addr) != slot->stamp)
		Py_RETURN_NONE;
	return PyBytes_FromStringAndSize((char *)slot->trace_id,
					 sizeof(slot->trace_id) + sizeof(slot->span_id));
}

static PyMethodDef module_methods[] = {
	{ "arm", table_arm, METH_VARARGS,
	  "arm(slots_fd, lines_fd, clock_offset_ns=0): map a context table and publish into it from now on." },
	{ "rearm", table_rearm, METH_VARARGS,
	  "rearm(slots_fd, lines_fd, clock_offset_ns=0): have this table instead; its slots may be the same." },
	{ "disarm", table_disarm, METH_NOARGS,
	  "Take back what is published, stop publishing, and unmap the table." },
	{ "armed", table_armed, METH_NOARGS, "Is there a table?" },
	{ "armed_elsewhere", table_armed_elsewhere, METH_NOARGS,
	  "Is there a table that another interpreter of this process has armed?" },
	{ "configure", (PyCFunction)(void (*)(void))configure, METH_VARARGS | METH_KEYWORDS,
	  "configure(span_key, mask_key, on_fork): the context keys, and what to call at a forked child's first attach." },
	{ "expect_fork", expect_fork, METH_NOARGS,
	  "In a forked child: call on_fork at the next attach." },
	{ "set_default_mask", set_default_mask, METH_O,
	  "Programs enabled for every sampled context." },
	{ "counters", get_counters, METH_NOARGS, "What could not be published, by reason." },
	{ "follow", switches_follow, METH_VARARGS,
	  "follow(variable, guarded=False): publish this variable's value whenever it is set, or nothing when it is guarded; "
	  "hook() adds the other ways to change it." },
	{ "silence", silence, METH_O,
	  "silence(on): publish nothing, for what would be published cannot be kept right." },
	{ "leave", switches_leave, METH_NOARGS, "Take off all hooks, and follow no variable." },
	{ "hook", switches_hook, METH_O,
	  "hook(name): learn of switches by 'watcher', 'run', 'enter' or 'greenlet'; RuntimeError says why not." },
	{ "unhook", switches_unhook, METH_O, "unhook(name): take one off." },
	{ "missed_switches", get_missed_switches, METH_NOARGS,
	  "How many switches no hook told of, while a variable was followed." },
	{ "current", get_current, METH_NOARGS,
	  "What a BPF program finds for the calling thread: trace id and span id as bytes, or None." },
	{ "slot_bytes", table_slot_bytes, METH_NOARGS,
	  "A copy of the calling thread's slot, or None." },
	{ "otel_publish", otel_publish, METH_O,
	  "otel_publish(payload): make or update this process's OTEP 4719 process context; threads that get a slot from now on "
	  "are found by OTEP 4947." },
	{ "otel_withdraw", otel_withdraw, METH_NOARGS, "Take the process context away again." },
	{ "otel_address", otel_address, METH_NOARGS,
	  "Where the process context is; 0: not published." },
	{ "begin", breakdown_begin, METH_O,
	  "begin(span): note how this thread's account stands at the start of a span." },
	{ "end", (PyCFunction)(void (*)(void))breakdown_end, METH_FASTCALL,
	  "end(span, shared): put the times since begin() on a span that has just ended; returns one of the constants. "
	  "shared() tells whether the thread took turns between tasks." },
	{ NULL },
};

static struct PyModuleDef module_def = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_publisher",
	.m_doc = "Publishes the current trace context of each thread to BPF programs.",
	.m_size = -1,
	.m_methods = module_methods,
};

static const char *const cause_names[EBT_CAUSES] = {
	[EBT_ON_CPU] = "on_cpu", [EBT_RUN_QUEUE] = "run_queue",	  [EBT_THROTTLED] = "throttled",
	[EBT_DISK] = "disk",	 [EBT_NETWORK] = "network",	  [EBT_LOCK] = "lock",
	[EBT_SLEEP] = "sleep",	 [EBT_PAGE_FAULT] = "page_fault", [EBT_OTHER] = "other",
};

static int state_init(void)
{
	state.context_attr = PyUnicode_InternFromString("_context");
	state.get_span_context = PyUnicode_InternFromString("get_span_context");
	state.attach = PyUnicode_InternFromString("attach");
	state.detach = PyUnicode_InternFromString("detach");
	state.get_current = PyUnicode_InternFromString("get_current");
	state.attributes_attr = PyUnicode_InternFromString("_attributes");
	state.start_time_attr = PyUnicode_InternFromString("_start_time");
	state.end_time_attr = PyUnicode_InternFromString("_end_time");
	state.dict_attr = PyUnicode_InternFromString("_dict");
	state.maxlen_attr = PyUnicode_InternFromString("maxlen");
	state.lost_key = PyUnicode_InternFromString("ebpftrace.lost_records");
	state.suspended_key = PyUnicode_InternFromString("ebpftrace.time.suspended");
	state.span_key = PyUnicode_InternFromString("");
	state.mask_key = Py_XNewRef(state.span_key);
	for (int cause = 0; cause < EBT_CAUSES; cause++) {
		state.time_keys[cause] =
			PyUnicode_FromFormat("ebpftrace.time.%s", cause_names[cause]);
		if (!state.time_keys[cause])
			return -1;
		PyUnicode_InternInPlace(&state.time_keys[cause]);
	}
	return PyErr_Occurred() ? -1 : 0;
}

static int add_time_keys(PyObject *module)
{
	PyObject *keys = PyTuple_New(EBT_CAUSES);
	int failed;

	if (!keys)
		return -1;
	for (int cause = 0; cause < EBT_CAUSES; cause++)
		PyTuple_SET_ITEM(keys, cause, Py_NewRef(state.time_keys[cause]));
	failed = PyModule_AddObjectRef(module, "TIME_KEYS", keys);
	Py_DECREF(keys);
	return failed;
}

PyMODINIT_FUNC PyInit__publisher(void)
{
	PyObject *module;

	if (table_init()) {
		PyErr_SetString(PyExc_ImportError,
				"no thread key or fork handler left in this process");
		return NULL;
	}
	if (state_init() || greenlets_init() || PyType_Ready(&runtime_type))
		return NULL;
	module = PyModule_Create(&module_def);
	if (!module)
		return NULL;
	if (PyModule_AddObjectRef(module, "RuntimeContext", (PyObject *)&runtime_type) ||
	    PyModule_AddIntConstant(module, "KERNEL_SPAN", KERNEL_SPAN) ||
	    PyModule_AddIntConstant(module, "MEASURED", MEASURED) ||
	    PyModule_AddIntConstant(module, "ANOTHER_THREAD", ANOTHER_THREAD) ||
	    PyModule_AddIntConstant(module, "SHARED_THREAD", SHARED_THREAD) ||
	    PyModule_AddIntConstant(module, "NO_ROOM", NO_ROOM) ||
	    PyModule_AddIntConstant(module, "TABLE_SLOTS", EBT_TABLE_SLOTS) ||
	    PyModule_AddIntConstant(module, "SLOT_BYTES", sizeof(struct ebt_slot)) ||
	    PyModule_AddIntConstant(module, "LINE_BYTES", sizeof(struct ebt_line)) ||
	    add_time_keys(module)) {
		Py_DECREF(module);
		return NULL;
	}
	return module;
}
