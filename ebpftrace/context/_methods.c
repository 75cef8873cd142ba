/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A method of a built-in type, replaced.  Its PyMethodDef is in the
 * interpreter's writable data, and whatever calls the method, specialised
 * bytecode and bound methods too, reads the function's address there.
 */
#define _GNU_SOURCE /* dladdr */
#include "_publisher.h"

#include <dlfcn.h>

static bool same_library(const void *one, const void *other)
{
	Dl_info first, second;

	return dladdr(one, &first) && dladdr(other, &second) && first.dli_fbase == second.dli_fbase;
}

/* Borrowed from the type, or NULL with an exception. */
static PyMethodDef *method_def(const struct method *method)
{
	PyObject *found = PyObject_GetAttrString((PyObject *)method->type, method->name);
	PyMethodDef *def = NULL;

	if (!found)
		return NULL;
	if (Py_IS_TYPE(found, &PyMethodDescr_Type))
		def = ((PyMethodDescrObject *)found)->d_method;
	Py_DECREF(found); /* the type keeps it */
	if (!def || def->ml_flags != method->flags) {
		PyErr_Format(PyExc_RuntimeError, "%s.%s is not called as in other CPythons",
			     method->type->tp_name, method->name);
		return NULL;
	}
	return def;
}

int method_replace(struct method *method)
{
	PyMethodDef *def;

	if (method->def) /* replaced already, if perhaps below somebody else */
		return 0;
	def = method_def(method);
	if (!def)
		return -1;
	/* Ours may do without the function that was there: that must be the interpreter's. */
	if (!same_library((void *)(uintptr_t)def->ml_meth, method->type)) {
		PyErr_Format(PyExc_RuntimeError, "%s.%s was replaced by somebody else",
			     method->type->tp_name, method->name);
		return -1;
	}
	method->was = def->ml_meth;
	method->def = def;
	__atomic_store_n(&def->ml_meth, method->ours, __ATOMIC_RELEASE);
	return 0;
}

bool method_restore(struct method *method)
{
	if (!method->def)
		return true;
	if (method->def->ml_meth != method->ours)
		return false;
	__atomic_store_n(&method->def->ml_meth, method->was, __ATOMIC_RELEASE);
	method->def = NULL;
	return true;
}
