/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Greenlets: each has a context of its own, which greenlet puts into the thread
 * state without telling CPython's watchers.  greenlet.settrace() tells, thread
 * by thread; whoever traces already is called after us.
 */
#include "_publisher.h"

typedef struct {
	PyObject_HEAD
	PyObject *previous; /* the tracer that was there, which is called after us */
	vectorcallfunc call;
	unsigned int installation;
} Tracer;

bool greenlets_followed;
static PyObject *settrace_name, *gettrace_name, *greenlet_name;

/* A new reference to a function of the module greenlet when that was imported, else NULL; no exception. */
static PyObject *greenlet_function(PyObject *name)
{
	PyObject *modules = PyImport_GetModuleDict();
	PyObject *module =
		PyDict_CheckExact(modules) ? PyDict_GetItemWithError(modules, greenlet_name) : NULL;
	PyObject *function = module ? PyObject_GetAttr(module, name) : NULL;

	PyErr_Clear(); /* it is being imported just now */
	return function;
}

static int greenlet_settrace(PyObject *tracer, PyObject **previous)
{
	PyObject *settrace = greenlet_function(settrace_name);

	*previous = settrace ? PyObject_CallOneArg(settrace, tracer) : NULL;
	Py_XDECREF(settrace);
	if (*previous)
		return 0;
	PyErr_Clear();
	return -1;
}

/* The calling thread's tracer, a new reference; NULL without greenlet; no exception. */
static PyObject *greenlet_gettrace(void)
{
	PyObject *gettrace = greenlet_function(gettrace_name);
	PyObject *tracer = gettrace ? PyObject_CallNoArgs(gettrace) : NULL;

	Py_XDECREF(gettrace);
	PyErr_Clear();
	return tracer;
}

/* Take a tracer off the calling thread, where it is the one that greenlet calls. */
static void tracer_remove(Tracer *tracer)
{
	PyObject *now = greenlet_gettrace(), *ours = NULL;

	if (now == (PyObject *)tracer)
		greenlet_settrace(tracer->previous ? tracer->previous : Py_None, &ours);
	Py_XDECREF(ours);
	Py_XDECREF(now);
}

/* Called by greenlet after each switch, in the greenlet that runs now. */
static PyObject *tracer_call(PyObject *callable, PyObject *const *args, size_t nargs,
			     PyObject *names)
{
	PyThreadState *thread = PyThreadState_Get();
	Tracer *tracer = (Tracer *)callable;
	PyObject *previous = Py_XNewRef(tracer->previous), *result;

	if (!greenlets_followed || tracer->installation != switches.installation)
		tracer_remove(tracer);
	else if (switches_follow_thread(thread)) {
		if (self.seen + 1 != thread->context_ver)
			switches_missed(thread);
		switched(thread);
	}
	if (!previous)
		Py_RETURN_NONE;
	result = PyObject_Vectorcall(previous, args, nargs, names);
	Py_DECREF(previous);
	return result;
}

static int tracer_traverse(Tracer *tracer, visitproc visit, void *arg)
{
	Py_VISIT(tracer->previous);
	return 0;
}

static int tracer_clear(Tracer *tracer)
{
	Py_CLEAR(tracer->previous);
	return 0;
}

static void tracer_dealloc(Tracer *tracer)
{
	PyObject_GC_UnTrack(tracer);
	tracer_clear(tracer);
	Py_TYPE(tracer)->tp_free((PyObject *)tracer);
}

static PyTypeObject tracer_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "ebpftrace.context._publisher.GreenletTracer",
	.tp_doc =
		"Publishes what is current after each switch of greenlets, then calls the tracer that was there.",
	.tp_basicsize = sizeof(Tracer),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
	.tp_vectorcall_offset = offsetof(Tracer, call),
	.tp_call = PyVectorcall_Call,
	.tp_traverse = (traverseproc)tracer_traverse,
	.tp_clear = (inquiry)tracer_clear,
	.tp_dealloc = (destructor)tracer_dealloc,
};

static PyObject *tracer_new(PyObject *previous)
{
	Tracer *tracer = PyObject_GC_New(Tracer, &tracer_type);

	if (!tracer)
		return NULL;
	while (Py_IS_TYPE(previous, &tracer_type)) /* of an installation that is over */
		previous =
			((Tracer *)previous)->previous ? ((Tracer *)previous)->previous : Py_None;
	tracer->previous = previous == Py_None ? NULL : Py_NewRef(previous);
	tracer->call = tracer_call;
	tracer->installation = switches.installation;
	PyObject_GC_Track(tracer);
	return (PyObject *)tracer;
}

void greenlets_trace(void)
{
	PyObject *now = greenlet_gettrace(), *tracer = NULL, *previous = NULL;

	/* Somebody who took our place since, and does not call us, is left alone. */
	if (now && (self.traced != switches.installation || now == Py_None))
		tracer = tracer_new(now);
	if (tracer && greenlet_settrace(tracer, &previous) == 0)
		self.traced = switches.installation;
	PyErr_Clear();
	Py_XDECREF(previous);
	Py_XDECREF(tracer);
	Py_XDECREF(now);
}

int greenlets_on(void)
{
	greenlets_followed = true;
	return 0;
}

void greenlets_off(void)
{
	PyObject *now = greenlet_gettrace();

	greenlets_followed = false;
	if (now && Py_IS_TYPE(now, &tracer_type))
		tracer_remove((Tracer *)now);
	self.traced = 0;
	Py_XDECREF(now);
}

int greenlets_init(void)
{
	settrace_name = PyUnicode_InternFromString("settrace");
	gettrace_name = PyUnicode_InternFromString("gettrace");
	greenlet_name = PyUnicode_InternFromString("greenlet");
	return PyErr_Occurred() ? -1 : PyType_Ready(&tracer_type);
}
