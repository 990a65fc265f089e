/* Where the Cython side needs C itself: running callbacks, the interpreter's lock, and the garbage
 * collector's view of what the C core holds. */
#ifndef STELLANE_BRIDGE_H
#define STELLANE_BRIDGE_H

#include <Python.h>
#include <pthread.h>
#include <time.h>

#include "core/st_queue.h"
#include "core/st_timers.h"

#ifdef Py_GIL_DISABLED
enum { stl_free_threaded = 1 };
#else
enum { stl_free_threaded = 0 };
#endif

/* Whoever touches what such a lock guards has the interpreter's lock too, where there is one: that is enough then. */
static inline void stl_lock(pthread_mutex_t *lock) {
    if (stl_free_threaded) pthread_mutex_lock(lock);
}

static inline void stl_unlock(pthread_mutex_t *lock) {
    if (stl_free_threaded) pthread_mutex_unlock(lock);
}

typedef struct stl_block {
    PyThreadState *thread_state;
    void *loop; /* whose poller it is: borrowed */
} stl_block;

static void stl_block_begin(void *context) { ((stl_block *)context)->thread_state = PyEval_SaveThread(); }
static void stl_block_end(void *context) { PyEval_RestoreThread(((stl_block *)context)->thread_state); }

static inline double stl_now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Cython makes the dict of `cdef dict __dict__` with the object; the interpreter makes one when an attribute is set. */
static inline void stl_drop_empty_dict(PyObject *object) {
    PyObject **dict = (PyObject **)((char *)object + Py_TYPE(object)->tp_dictoffset);
    Py_CLEAR(*dict);
}

/* From a finalizer. Where warnings are errors Cython would tell sys.excepthook of it, which is for the end of a program. */
static inline void stl_warn_unclosed(PyObject *transport) {
    if (PyErr_ResourceWarning(transport, 1, "unclosed transport %R", transport)) PyErr_WriteUnraisable(transport);
}

/* callback(*args) in `context`; args is a tuple. NULL with an exception set, or a new reference. */
static inline PyObject *stl_call(PyObject *context, PyObject *callback, PyObject *args) {
    PyObject *result;
    if (PyContext_Enter(context)) return NULL;
    result = PyObject_Vectorcall(callback, ((PyTupleObject *)args)->ob_item, (size_t)PyTuple_GET_SIZE(args), NULL);
    if (PyContext_Exit(context)) Py_CLEAR(result);
    return result;
}

static inline PyObject *stl_call_one(PyObject *context, PyObject *callback, PyObject *arg) {
    PyObject *result;
    PyObject *args[2] = {NULL, arg};
    if (PyContext_Enter(context)) return NULL;
    result = PyObject_Vectorcall(callback, args + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    if (PyContext_Exit(context)) Py_CLEAR(result);
    return result;
}

static inline PyObject *stl_call_two(PyObject *context, PyObject *callback, PyObject *first, PyObject *second) {
    PyObject *result;
    PyObject *args[3] = {NULL, first, second};
    if (PyContext_Enter(context)) return NULL;
    result = PyObject_Vectorcall(callback, args + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    if (PyContext_Exit(context)) Py_CLEAR(result);
    return result;
}

/* The handles in the ring and in the heap are strong references that Cython does not know of. Without
 * this a loop that was dropped unclosed with callbacks pending could never be collected. */
typedef struct stl_held {
    st_queue *ready, *inbox;
    st_timers *timers;
} stl_held;
typedef stl_held (*stl_held_by)(PyObject *);

static traverseproc stl_traverse_generated;
static stl_held_by stl_held_function;

static int stl_traverse(PyObject *self, visitproc visit, void *arg) {
    int stop = stl_traverse_generated ? stl_traverse_generated(self, visit, arg) : 0;
    if (stop) return stop;
    stl_held held = stl_held_function(self);
    for (size_t i = 0; i < held.ready->count; i++) Py_VISIT((PyObject *)st_queue_at(held.ready, i));
    for (size_t i = 0; i < held.inbox->count; i++) Py_VISIT((PyObject *)st_queue_at(held.inbox, i));
    for (size_t i = 0; i < held.timers->count; i++) Py_VISIT((PyObject *)held.timers->slots[i].timer->item);
    return 0;
}

static inline void stl_traverse_held(PyTypeObject *type, stl_held_by function) {
    stl_traverse_generated = type->tp_traverse;
    stl_held_function = function;
    type->tp_traverse = stl_traverse;
}

#endif
