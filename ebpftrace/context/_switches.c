/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Contexts that take over without OpenTelemetry: a task's step, a callback of an
 * event loop, a greenlet.  Each hook calls switched() when another
 * contextvars.Context has become the thread's, and what that one holds is
 * published.
 *
 *   watcher    PyContext_AddWatcher(), from CPython 3.14 on: all but greenlets
 *   run        the method Context.run: asyncio, executors, whatever is written in Python
 *   enter      PyContext_Enter() and _Exit() as imported by libraries: asyncio's eager tasks, uvloop
 *   greenlet   greenlet.settrace(), thread by thread: gevent, eventlet
 *
 * ContextVar.set() and reset() on OpenTelemetry's own variable are always
 * followed: that changes what is current, and no stamp shows it.
 *
 * They run in every thread and every interpreter; what is not the business of
 * the one that installed them goes its way untouched.
 */
#include "_publisher.h"

struct switches switches;

void switched(PyThreadState *thread)
{
	PyObject *type, *value, *traceback, *context = NULL;
	/* leaving a context after an exception, that one is pending */
	bool pending = thread->interp == switches.interp && PyErr_Occurred();

	if (thread->interp != switches.interp)
		return;
	self.seen = thread->context_ver;
	if (!table.slots || !switches.variable)
		return;
	if (pending)
		PyErr_Fetch(&type, &value, &traceback);
	contexts_switched(thread); /* contexts that it lets go may run Python */
	if (switches.variable && !switches.guarded &&
	    PyContextVar_Get(switches.variable, NULL, &context) == 0 && context) {
		publish(context, true);
		Py_DECREF(context);
	} else {
		PyErr_Clear();
		publish_nothing();
	}
	if (pending)
		PyErr_Restore(type, value, traceback);
}

/* --- ContextVar.set(), ContextVar.reset() ------------------------------------------------ */

static PyObject *variable_set(PyObject *variable, PyObject *value);
static PyObject *variable_reset(PyObject *variable, PyObject *token);

static struct method set_method = { &PyContextVar_Type, "set", METH_O, variable_set, NULL, NULL };
static struct method reset_method = { &PyContextVar_Type, "reset", METH_O,
				      variable_reset,	  NULL,	   NULL };

static void variable_changed(PyObject *variable, PyObject *result)
{
	PyThreadState *thread;

	if (!result || variable != switches.variable) /* nearly always: all variables come here */
		return;
	thread = PyThreadState_Get();
	if (!switches_follow_thread(thread))
		return;
	switches_note(thread);
	switched(thread);
}

static PyObject *variable_set(PyObject *variable, PyObject *value)
{
	PyObject *token = set_method.was(variable, value);

	variable_changed(variable, token);
	return token;
}

static PyObject *variable_reset(PyObject *variable, PyObject *token)
{
	PyObject *result = reset_method.was(variable, token);

	variable_changed(variable, result);
	return result;
}

#if PY_VERSION_HEX >= 0x030E0000
/* `with variable.set(value):`, whose end does not come by the method reset(). */
static PyObject *token_exit(PyObject *token, PyObject *const *args, Py_ssize_t nargs);

static struct method exit_method = {
	&PyContextToken_Type,
	"__exit__",
	METH_FASTCALL,
	(PyCFunction)(void (*)(void))token_exit,
	NULL,
	NULL,
};

typedef PyObject *(*exit_function)(PyObject *, PyObject *const *, Py_ssize_t);

static PyObject *token_exit(PyObject *token, PyObject *const *args, Py_ssize_t nargs)
{
	PyObject *result = ((exit_function)(void (*)(void))exit_method.was)(token, args, nargs);
	PyObject *variable = result ? PyObject_GetAttrString(token, "var") : NULL;

	if (result && !variable)
		PyErr_Clear();
	variable_changed(variable, result);
	Py_XDECREF(variable);
	return result;
}

static int exit_replace(void)
{
	return method_replace(&exit_method);
}

static void exit_restore(void)
{
	method_restore(&exit_method);
}
#else
static int exit_replace(void)
{
	return 0;
}

static void exit_restore(void)
{
}
#endif

/* --- watcher ----------------------------------------------------------------------------- */

#if PY_VERSION_HEX >= 0x030E0000
static int watcher_id = -1;

static int watcher_event(PyContextEvent event, PyObject *Py_UNUSED(context))
{
	PyThreadState *thread = PyThreadState_Get();

	if (event != Py_CONTEXT_SWITCHED || !switches_follow_thread(thread))
		return 0;
	if (self.seen + 1 != thread->context_ver)
		switches_missed(thread);
	switched(thread);
	return 0;
}

static int watcher_on(void)
{
	if (watcher_id < 0)
		watcher_id = PyContext_AddWatcher(watcher_event);
	return watcher_id < 0 ? -1 : 0;
}

static void watcher_off(void)
{
#ifndef Py_GIL_DISABLED /* there, other threads go through the list of watchers without a lock */
	if (watcher_id >= 0 && PyContext_ClearWatcher(watcher_id))
		PyErr_Clear();
	watcher_id = -1;
#endif
}
#else
static int watcher_on(void)
{
	PyErr_SetString(PyExc_RuntimeError, "CPython has watchers of contexts from 3.14 on");
	return -1;
}

static void watcher_off(void)
{
}
#endif

/* --- run --------------------------------------------------------------------------------- */

static PyObject *context_run(PyObject *context, PyObject *const *args, Py_ssize_t nargs,
			     PyObject *names);

static struct method run_method = {
	&PyContext_Type,
	"run",
	METH_FASTCALL | METH_KEYWORDS,
	(PyCFunction)(void (*)(void))context_run,
	NULL,
	NULL,
};

/* What is published before another context is entered, to be published again when that is left. */
struct kept {
	PyObject *context; /* OpenTelemetry's; NULL = nothing is kept */
	struct ebt_slot *slot;
	unsigned int epoch;
	struct ebt_slot copy;
};

static void kept_take(struct kept *kept, PyThreadState *thread)
{
	struct ebt_python python = python_state(thread);

	kept->context = NULL;
	kept->slot = slot_known();
	kept->epoch = table.epoch;
	if (!kept->slot || kept->slot->valid != 1 || ebt_stamp(&python) != kept->slot->stamp)
		return;
	kept->copy = *kept->slot;
	if (PyContextVar_Get(switches.variable, NULL, &kept->context))
		PyErr_Clear();
}

/* The context before has taken over again: mostly it holds what it held, and its span need not be looked at again. */
static void kept_publish(struct kept *kept, PyThreadState *thread)
{
	PyObject *context = NULL;

	if (!kept->context || kept->epoch != table.epoch || kept->slot != slot_held() ||
	    !switches_follow_thread(thread) || PyErr_Occurred()) {
		switched(thread);
	} else if (PyContextVar_Get(switches.variable, NULL, &context) ||
		   context != kept->context) {
		PyErr_Clear();
		switched(thread);
	} else {
		struct ebt_python python = python_state(thread);

		self.seen = thread->context_ver;
		contexts_switched(thread);
		slot_write(kept->slot, &kept->copy, ebt_stamp(&python));
	}
	Py_XDECREF(context);
	Py_CLEAR(kept->context);
}

typedef PyObject *(*run_function)(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);

/* What Context.run does, and a look after each of the two switches in it. */
static PyObject *context_run(PyObject *context, PyObject *const *args, Py_ssize_t nargs,
			     PyObject *names)
{
	PyThreadState *thread = PyThreadState_Get();
	struct kept kept;
	PyObject *result;

	if (nargs < 1 || !switches_follow_thread(thread))
		return ((run_function)(void (*)(void))run_method.was)(context, args, nargs, names);
	switches_note(thread);
	kept_take(&kept, thread);
	if (PyContext_Enter(context)) {
		Py_XDECREF(kept.context);
		return NULL;
	}
	switched(thread);
	result = PyObject_Vectorcall(args[0], args + 1, (size_t)(nargs - 1), names);
	switches_note(thread);
	if (PyContext_Exit(context))
		Py_CLEAR(result);
	kept_publish(&kept, thread);
	return result;
}

static int run_on(void)
{
	return method_replace(&run_method);
}

static void run_off(void)
{
	method_restore(&run_method);
}

/* --- enter ------------------------------------------------------------------------------- */

static int context_enter(PyObject *context)
{
	PyThreadState *thread = PyThreadState_Get();
	int failed;

	if (!switches_follow_thread(thread))
		return PyContext_Enter(context);
	switches_note(thread);
	failed = PyContext_Enter(context);
	switched(thread);
	return failed;
}

static int context_exit(PyObject *context)
{
	PyThreadState *thread = PyThreadState_Get();
	int failed;

	if (!switches_follow_thread(thread))
		return PyContext_Exit(context);
	switches_note(thread);
	failed = PyContext_Exit(context);
	switched(thread);
	return failed;
}

static const struct import imports[] = {
	{ "PyContext_Enter", (void *)(uintptr_t)PyContext_Enter, (void *)(uintptr_t)context_enter },
	{ "PyContext_Exit", (void *)(uintptr_t)PyContext_Exit, (void *)(uintptr_t)context_exit },
};

static bool entering;

static int enter_on(void)
{
	imports_replace(imports, Py_ARRAY_LENGTH(imports));
	entering = true;
	return 0;
}

static void enter_off(void)
{
	imports_restore();
	entering = false;
}

/* --- all of them ------------------------------------------------------------------------- */

static const struct {
	const char *name;
	int (*on)(void); /* -1 with an exception that says why not */
	void (*off)(void);
} hooks[] = {
	{ "watcher", watcher_on, watcher_off },
	{ "run", run_on, run_off },
	{ "enter", enter_on, enter_off },
	{ "greenlet", greenlets_on, greenlets_off },
};

void switches_missed(PyThreadState *thread)
{
	PyObject *type, *value, *traceback;

	if (thread->interp != switches.interp)
		return;
	counters.missed += self.seen != 0;
	self.missed++;
	self.seen = thread->context_ver;
	PyErr_Fetch(&type, &value, &traceback);
	if (entering)
		imports_replace(imports, Py_ARRAY_LENGTH(imports));
	if (greenlets_followed)
		greenlets_trace();
	PyErr_Restore(type, value, traceback);
}

PyObject *switches_follow(PyObject *Py_UNUSED(module), PyObject *args)
{
	PyObject *variable;
	int guarded = false;

	if (!PyArg_ParseTuple(args, "O|p", &variable, &guarded))
		return NULL;
	if (!PyContextVar_CheckExact(variable)) {
		PyErr_SetString(PyExc_TypeError, "variable must be a contextvars.ContextVar");
		return NULL;
	}
	if (method_replace(&set_method) || method_replace(&reset_method) || exit_replace())
		return NULL;
	switches.interp = PyInterpreterState_Get();
	switches.installation++;
	switches.guarded = guarded;
	Py_XSETREF(switches.variable, Py_NewRef(variable));
	Py_RETURN_NONE;
}

PyObject *switches_leave(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	for (size_t i = 0; i < Py_ARRAY_LENGTH(hooks); i++)
		hooks[i].off();
	method_restore(&set_method);
	method_restore(&reset_method);
	exit_restore();
	Py_CLEAR(switches.variable);
	Py_RETURN_NONE;
}

static int hook_find(PyObject *name)
{
	for (int i = 0; i < (int)Py_ARRAY_LENGTH(hooks); i++) {
		if (PyUnicode_Check(name) && !PyUnicode_CompareWithASCIIString(name, hooks[i].name))
			return i;
	}
	PyErr_Format(PyExc_ValueError, "there is no hook %R", name);
	return -1;
}

PyObject *switches_hook(PyObject *Py_UNUSED(module), PyObject *name)
{
	int found = hook_find(name);

	if (found < 0)
		return NULL;
	if (!switches.variable) {
		PyErr_SetString(PyExc_RuntimeError, "no variable is followed");
		return NULL;
	}
	if (hooks[found].on())
		return NULL;
	switches_missed(PyThreadState_Get()); /* this thread's first look */
	Py_RETURN_NONE;
}

PyObject *switches_unhook(PyObject *Py_UNUSED(module), PyObject *name)
{
	int found = hook_find(name);

	if (found < 0)
		return NULL;
	hooks[found].off();
	Py_RETURN_NONE;
}
